// A device has memory for the weights and the graph, and none for the other devices' summands: what it is given for them is used
// as it is.
#include "repro.h"

static int left = 2;

int main() {
    problem p;
    p.splits  = { { "a", { 0, { 32, 32 } } }, { "x", { 0, { 32, 32 } } } };
    p.devices = make_devices(2);
    p.devices[1]->buft.iface.alloc_buffer = [](ggml_backend_buffer_type_t buft, size_t size) -> ggml_backend_buffer_t {
        return left-- > 0 ? fake_alloc(buft, size) : nullptr;
    };
    compare("no memory for sums", p, [](problem & p) {
        return ggml_scale(p.ctx, ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3)), 2.0f);
    });
}
