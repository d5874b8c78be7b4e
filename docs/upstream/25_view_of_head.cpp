// A view of the last part of every head: where it begins within a head is scaled by the device's share, as if it were a number
// of heads, unless the part is at least as long as what lies in front of it. MLA rotates the last 64 of 192 dimensions of Q.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 1, { 64*2, 64*2 } } } };
    for (int part : { 32, 16 }) {
        compare(part == 32 ? "the last 32 of 64" : "the last 16 of 64", p, [&](problem & p) {
            ggml_tensor * q = ggml_mul_mat(p.ctx, p.leaf("w", GGML_TYPE_F32, 16, 64*4), p.leaf("x", GGML_TYPE_F32, 16, 3));
            q = ggml_reshape_3d(p.ctx, q, 64, 4, 3);
            return ggml_cont(p.ctx, ggml_view_3d(p.ctx, q, part, 4, 3, q->nb[1], q->nb[2], (64 - part)*sizeof(float)));
        });
    }
}
