// y is partial and used twice. Its all-reduce is delayed over the MUL, so the ADD reads a summand of y on every device.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "a", { 0, { 32, 32 } } }, { "x", { 0, { 32, 32 } } } };
    for (bool view : { false, true }) {
        compare(view ? "y*m + y, a VIEW behind y" : "y*m + y", p, [&](problem & p) {
            ggml_tensor * y = ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3));
            y = view ? same_view(p, y) : y;
            return ggml_add(p.ctx, ggml_mul(p.ctx, y, p.leaf("m", GGML_TYPE_F32, 8)), y);
        });
    }
}
