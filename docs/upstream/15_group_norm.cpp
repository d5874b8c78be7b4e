// GROUP_NORM split along axis 2, over which groups reach: every device makes all groups out of its own channels.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "w", { 2, { 2, 2 } } } };
    compare("GROUP_NORM, axis 2", p, [](problem & p) { return ggml_group_norm(p.ctx, p.leaf("w", GGML_TYPE_F32, 4, 4, 4), 2, 1e-6f); });
}
