// ROPE of heads whose dimensions are split: pairs of dimensions lie on different devices.
// With an argument: all 64 dimensions are rotated, more than a device has; else 32 of them.
#include "repro.h"

int main(int argc, char **) {
    problem p;
    p.splits = { { "w", { 0, { 32, 32 } } } };
    p.ints   = { { "positions", { 0, 1, 2 } } };
    const int n_dims = argc > 1 ? 64 : 32;
    compare("ROPE, axis 0", p, [&](problem & p) {
        return ggml_rope(p.ctx, p.leaf("w", GGML_TYPE_F32, 64, 4, 3), p.leaf("positions", GGML_TYPE_I32, 3), n_dims, GGML_ROPE_TYPE_NEOX);
    });
}
