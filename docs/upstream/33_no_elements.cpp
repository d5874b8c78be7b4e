// SET_ROWS on the CPU of rows without elements, as a view of nothing is: the kernel divides by their number. `supports_op` says yes.
#include "repro.h"

int main() {
    ggml_context * ctx  = ggml_init({ 1 << 20, nullptr, false });
    ggml_tensor *  to   = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 4);
    ggml_tensor *  rows = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 2);
    ggml_tensor *  ids  = ggml_new_tensor_2d(ctx, GGML_TYPE_I64, 2, 1);
    memset(ids->data, 0, ggml_nbytes(ids));
    // ids of two rows, of which there are as many as rows, but none along axis 1
    ggml_tensor * none  = ggml_view_2d(ctx, ids, 2, 0, ids->nb[1], 0);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    printf("SET_ROWS, ids of ne [2, 0]: ");
    fflush(stdout);
    ggml_build_forward_expand(graph, ggml_set_rows(ctx, to, rows, none));
    ggml_graph_compute_with_ctx(ctx, graph, 1);
    printf("computed\n");
}
