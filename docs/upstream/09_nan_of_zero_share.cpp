// A device without a share takes part in the sum with its memory multiplied by zero. New memory of a device may hold NaN.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "a", { 0, { 64, 0 } } }, { "x", { 0, { 64, 0 } } } };
    for (int fill : { 0, 0xff }) {
        device_memory_fill = fill;
        compare(fill ? "zero share, memory was NaN" : "zero share, memory was 0", p, [](problem & p) {
            return ggml_scale(p.ctx, ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3)), 2.0f);
        });
    }
}
