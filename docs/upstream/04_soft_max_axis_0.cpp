// SOFT_MAX of a tensor that is split along axis 0: every device normalises by the sum of its own part.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 0, { 8, 8 } } } };
    compare("SOFT_MAX, axis 0", p, [](problem & p) { return ggml_soft_max(p.ctx, p.leaf("w", GGML_TYPE_F32, 16, 4)); });
    p.splits = { { "w", { 1, { 2, 2 } } } };
    compare("SOFT_MAX, axis 1", p, [](problem & p) { return ggml_soft_max(p.ctx, p.leaf("w", GGML_TYPE_F32, 16, 4)); });
}
