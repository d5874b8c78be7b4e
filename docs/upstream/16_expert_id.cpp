// MUL_MAT_ID on the CPU with an expert that is not there, as a Release build answers. No meta device is needed.
// The id is one too large: the kernel counts the row beyond its counters, and no expert computes it.
#include "repro.h"

int main() {
    std::vector<float> out[2];
    for (int bad = 0; bad < 2; bad++) {
        problem p;
        p.ints = { { "ids", { 0, 1, 1, bad ? 2 : 0 } } };
        out[bad] = compute(p, [](problem & p) {
            return ggml_mul_mat_id(p.ctx, p.leaf("experts", GGML_TYPE_F32, 32, 4, 2), p.leaf("x", GGML_TYPE_F32, 32, 1, 4),
                p.leaf("ids", GGML_TYPE_I32, 1, 4));
        }, false);
    }
    for (int row = 0; row < 3; row++) { // the rows with a good id in both
        const std::vector<float> want(out[0].begin() + 4*row, out[0].begin() + 4*row + 4), have(out[1].begin() + 4*row, out[1].begin() + 4*row + 4);
        printf("row %d, good id: %s, NMSE %.2g\n", row, verdict(nmse(want, have)), nmse(want, have));
    }
    printf("row 3, expert 2 of 2: no error, values %g %g %g %g\n", out[1][12], out[1][13], out[1][14], out[1][15]);
}
