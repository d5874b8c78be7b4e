// tensor_get aborts for a node that is partial, although it was summed in place.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "a", { 0, { 32, 32 } } }, { "x", { 0, { 32, 32 } } } };
    ggml_tensor * y = nullptr;
    compute(p, [&](problem & p) {
        y = ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3));
        ggml_set_output(y);
        return ggml_scale(p.ctx, y, 2.0f);
    }, true, [&](problem &) {
        read(y);
        printf("read\n");
    });
}
