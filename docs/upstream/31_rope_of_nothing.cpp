// ROPE of no element of each head, as rope.dimension_count = 0 in a file asks for: the loop over what is not rotated steps
// back by two where the rotated elements begin, and never gets on.
#include "repro.h"

int main() {
    problem p;
    p.n_devices = 1;
    p.ints["pos"] = { 0, 1, 2 };
    for (int n_dims : { 8, 0 }) {
        compare(n_dims ? "8 elements" : "none", p, [&](problem & p) {
            return ggml_rope(p.ctx, p.leaf("x", GGML_TYPE_F32, 16, 2, 3), p.leaf("pos", GGML_TYPE_I32, 3), n_dims, GGML_ROPE_TYPE_NEOX);
        });
    }
}
