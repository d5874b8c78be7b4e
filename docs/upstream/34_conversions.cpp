// A conversion that the CPU says it supports, and whose kernel calls a function that is not there: Q8_K has no to_float.
#include "repro.h"

int main() {
    ggml_context * ctx   = ggml_init({ 1 << 20, nullptr, false });
    ggml_tensor *  a     = ggml_new_tensor_2d(ctx, GGML_TYPE_Q8_K, 256, 2);
    memset(a->data, 0, ggml_nbytes(a));
    ggml_tensor *  b     = ggml_cast(ctx, a, GGML_TYPE_F32);
    ggml_backend_t cpu   = ggml_backend_cpu_init();
    ggml_cgraph *  graph = ggml_new_graph(ctx);
    printf("%s to %s, supports_op %s: ", ggml_type_name(a->type), ggml_type_name(b->type), ggml_backend_supports_op(cpu, b) ? "yes" : "no");
    fflush(stdout);
    ggml_build_forward_expand(graph, b);
    ggml_graph_compute_with_ctx(ctx, graph, 1);
    printf("computed\n");
}
