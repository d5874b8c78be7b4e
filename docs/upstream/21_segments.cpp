// A weight in two segments meets an activation in one: the devices have as many indices of both, but not the same ones.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "a", { 0, { 16, 16, 16, 16 } } }, { "x", { 0, { 32, 32 } } } };
    compare("MUL_MAT, other segments than its source", p, [](problem & p) {
        return ggml_scale(p.ctx, ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3)), 2.0f);
    });
}
