// What is made of nothing (ARANGE) has no split state, and neither has what has no elements: whatever reads them is refused,
// though both are the same on every device. With an argument: the columns in front of the first one.
#include "repro.h"

int main(int argc, char **) {
    problem p;
    compare(argc > 1 ? "no elements" : "ARANGE", p, [&](problem & p) {
        ggml_tensor * x = p.leaf("x", GGML_TYPE_F32, 16, 3);
        if (argc > 1) {
            return ggml_concat(p.ctx, ggml_view_2d(p.ctx, x, 16, 0, x->nb[1], 0), x, 1);
        }
        return ggml_mul(p.ctx, x, ggml_arange(p.ctx, 0.0f, 16.0f, 1.0f));
    });
}
