// A VIEW of the first half of the split axis: every device shows the first half of its own part.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 0, { 8, 8 } } } };
    compare("VIEW of half of the split axis", p, [](problem & p) {
        ggml_tensor * w = p.leaf("w", GGML_TYPE_F32, 16, 4);
        return ggml_cont(p.ctx, ggml_view_2d(p.ctx, w, 8, 4, w->nb[1], 0));
    });
}
