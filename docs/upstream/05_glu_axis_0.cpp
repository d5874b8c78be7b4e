// A GLU with one source, whose halves are gate and up, split along axis 0: each device pairs halves of its own part.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 0, { 32, 32 } } } };
    compare("SWIGLU of one source, axis 0", p, [](problem & p) { return ggml_swiglu(p.ctx, p.leaf("w", GGML_TYPE_F32, 64, 4)); });
}
