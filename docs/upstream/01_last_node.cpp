// A partial node that ends a graph is never summed: every device keeps its own summand.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "a", { 0, { 32, 32 } } }, { "x", { 0, { 32, 32 } } } };
    builder sum = [](problem & p) {
        return ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3));
    };
    const std::vector<float> want = compute(p, sum, false);
    // tensor_get aborts for this node (see 02), so the devices' own memory is looked at
    compute(p, sum, true, [&](problem & p) {
        for (fake_device * d : p.devices) {
            const double e = nmse(want, read(d->last));
            printf("what %s holds behind the graph: %s, NMSE %.2g\n", d->name.c_str(), verdict(e), e);
        }
    });
    compare("with a VIEW behind it", p, [&](problem & p) { return same_view(p, sum(p)); });
}
