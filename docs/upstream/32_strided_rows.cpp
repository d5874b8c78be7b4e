// ARGSORT, CLAMP and LEAKY_RELU on the CPU of a view whose planes have a gap: rows are stepped over as if they all followed each
// other at nb[1]. No meta device is needed. `supports_op` says yes.
#include "repro.h"

int main() {
    const struct { const char * name; ggml_tensor * (*make)(ggml_context *, ggml_tensor *); } OPS[] = {
        { "ARGSORT",    [](ggml_context * ctx, ggml_tensor * a) { return ggml_argsort(ctx, a, GGML_SORT_ORDER_ASC); } },
        { "CLAMP",      [](ggml_context * ctx, ggml_tensor * a) { return ggml_clamp(ctx, a, -0.25f, 0.25f); } },
        { "LEAKY_RELU", [](ggml_context * ctx, ggml_tensor * a) { return ggml_leaky_relu(ctx, a, 0.1f, false); } },
    };
    for (const auto & op : OPS) {
        ggml_context * ctx   = ggml_init({ 1 << 20, nullptr, false });
        ggml_tensor *  whole = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 4, 6, 3);
        for (int i = 0; i < 72; i++) {
            ((float *) whole->data)[i] = sinf(float(i*i));
        }
        // CLAMP writes into its source
        ggml_tensor * part = ggml_view_3d(ctx, ggml_dup(ctx, whole), 4, 2, 3, whole->nb[1], whole->nb[2], 0);
        ggml_tensor * got  = ggml_cont(ctx, op.make(ctx, part));
        ggml_tensor * want = op.make(ctx, ggml_cont(ctx, ggml_view_3d(ctx, ggml_dup(ctx, whole), 4, 2, 3, whole->nb[1], whole->nb[2], 0)));
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, want);
        ggml_build_forward_expand(graph, got);
        ggml_graph_compute_with_ctx(ctx, graph, 1);
        int n = 0;
        for (int64_t i = 0; i < ggml_nelements(want); i++) {
            n += memcmp((char *) got->data + 4*i, (char *) want->data + 4*i, 4) != 0;
        }
        printf("%s: %d of %d elements differ from those of the contiguous copy\n", op.name, n, (int) ggml_nelements(want));
        ggml_free(ctx);
    }
}
