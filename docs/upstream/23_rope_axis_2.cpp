// ROPE split along the tokens, with positions that are whole on every device: the second device uses the first positions.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 2, { 2, 2 } } } };
    p.ints   = { { "positions", { 0, 1, 2, 3 } } };
    compare("ROPE, axis 2", p, [](problem & p) {
        return ggml_rope(p.ctx, p.leaf("w", GGML_TYPE_F32, 64, 4, 4), p.leaf("positions", GGML_TYPE_I32, 4), 64, GGML_ROPE_TYPE_NEOX);
    });
}
