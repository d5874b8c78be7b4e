// The second device has no part of y. y's sum is delayed over the MUL, and every node up to there is taken away from that
// device: also m, which lies there by chance, and which the ADD reads behind the sum.
#include "repro.h"

int main() {
    for (int64_t second : { 0, 32 }) {
        problem p;
        p.splits = { { "a", { 0, { 64 - second, second } } }, { "x", { 0, { 64 - second, second } } }, { "w", { 1, { 8, 8 } } } };
        compare(second ? "shares 32:32" : "shares 64:0", p, [](problem & p) {
            ggml_tensor * y = ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3));
            ggml_tensor * m = ggml_scale(p.ctx, p.leaf("z", GGML_TYPE_F32, 8, 3), 2.0f);
            return ggml_mul_mat(p.ctx, p.leaf("w", GGML_TYPE_F32, 8, 16), ggml_add(p.ctx, ggml_mul(p.ctx, y, m), m));
        });
    }
}
