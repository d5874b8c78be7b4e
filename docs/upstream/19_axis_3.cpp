// Splits along axis 3 are part of the API, but values cannot be written to such a tensor.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 3, { 1, 1 } } } };
    compare("SCALE, axis 3", p, [](problem & p) { return ggml_scale(p.ctx, p.leaf("w", GGML_TYPE_F32, 4, 2, 2, 2), 2.0f); });
}
