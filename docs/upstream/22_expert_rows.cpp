// MUL_MAT_ID of whole experts with activations that are split by the experts of a token: the ids are whole everywhere.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "x", { 1, { 1, 1 } } } };
    p.ints   = { { "ids", { 0, 1, 2, 3, 1, 0 } } };
    compare("MUL_MAT_ID, activations split by experts", p, [](problem & p) {
        return ggml_mul_mat_id(p.ctx, p.leaf("experts", GGML_TYPE_F32, 32, 4, 4), p.leaf("x", GGML_TYPE_F32, 32, 2, 3),
            p.leaf("ids", GGML_TYPE_I32, 2, 3));
    });
}
