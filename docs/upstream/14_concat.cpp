// CONCAT of a whole and a split tensor along another axis: every device takes the first elements of the whole one.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "b", { 0, { 8, 8 } } } };
    compare("CONCAT of a whole and a split source", p, [](problem & p) {
        return ggml_concat(p.ctx, p.leaf("a", GGML_TYPE_F32, 16, 4), p.leaf("b", GGML_TYPE_F32, 16, 4), 1);
    });
}
