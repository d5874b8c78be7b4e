// ARGMAX of rows that are split: the result has its rows along axis 0, the inferred split is along axis 1.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 1, { 4, 4 } } } };
    compare("ARGMAX, axis 1", p, [](problem & p) { return ggml_argmax(p.ctx, p.leaf("w", GGML_TYPE_F32, 16, 8)); });
}
