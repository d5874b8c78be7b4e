// A meta buffer of host parts calls itself a host buffer, although its addresses are made up. Two CPU devices are host parts.
// SET_ROWS, a view of the cache, is then handed to the devices as it is, and they write to these addresses.
#include "repro.h"

int main() {
    ggml_backend_dev_t cpu = ggml_backend_get_device(ggml_backend_cpu_init());
    ggml_backend_dev_t devs[2] = { cpu, cpu };
    problem p;
    ggml_backend_dev_t meta = ggml_backend_meta_device(devs, 2, state_of, &p);
    p.backend = ggml_backend_dev_init(meta, nullptr);
    ggml_tensor * cache = p.leaf("cache", GGML_TYPE_F32, 16, 8);
    ggml_tensor * rows  = p.leaf("rows", GGML_TYPE_F32, 16, 2);
    ggml_tensor * where = p.leaf("where", GGML_TYPE_I64, 2);
    p.buffer = ggml_backend_alloc_ctx_tensors(p.weights, p.backend);
    const int64_t at[2] = { 3, 5 };
    ggml_backend_tensor_set(where, at, 0, sizeof(at));
    printf("is_host: %s; SET_ROWS: ", ggml_backend_buffer_is_host(p.buffer) ? "yes" : "no");
    fflush(stdout);
    ggml_cgraph * g = ggml_new_graph(p.ctx);
    ggml_build_forward_expand(g, ggml_scale(p.ctx, ggml_set_rows(p.ctx, cache, rows, where), 2.0f));
    ggml_gallocr_t alloc = ggml_gallocr_new(ggml_backend_get_default_buffer_type(p.backend));
    ggml_gallocr_alloc_graph(alloc, g);
    ggml_backend_graph_compute(p.backend, g);
    printf("computed\n");
}
