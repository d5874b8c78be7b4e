// GELU of two neighbouring F32 numbers on the CPU: between them the argument's F16 changes, and with it the entry of the table.
// No meta device is needed; a split run comes to the neighbour because its sums end in another last bit.
#include "repro.h"

static float gelu_of(float x) {
    ggml_context * ctx = ggml_init({ 1 << 20, nullptr, false });
    ggml_tensor *  in  = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    ggml_tensor *  out = ggml_gelu(ctx, in);
    ggml_cgraph *  graph = ggml_new_graph(ctx);
    ((float *) in->data)[0] = x;
    ggml_build_forward_expand(graph, out);
    ggml_graph_compute_with_ctx(ctx, graph, 1);
    const float y = ((float *) out->data)[0];
    ggml_free(ctx);
    return y;
}

int main() {
    const float below = nextafterf(1.0f + 0.5f/1024, 0.0f), above = nextafterf(nextafterf(below, 2.0f), 2.0f);
    const float a = gelu_of(below), b = gelu_of(above);
    printf("x %.8g and %.8g (%.1g apart): GELU %.8g and %.8g (%.1g apart)\n", below, above, above/below - 1, a, b, b/a - 1);
}
