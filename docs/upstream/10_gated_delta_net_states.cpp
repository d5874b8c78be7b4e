// The states behind the scores of GATED_DELTA_NET, in the view that llama.cpp takes of them, over two and three devices.
#include "repro.h"

int main(int argc, char **) {
    const size_t n = argc > 1 ? 2 : 3;
    problem p;
    p.n_devices = n;
    const std::vector<int64_t> heads(n, 6/n);
    for (const char * name : { "q", "k", "v", "gate", "beta" }) {
        p.splits[name] = { 1, heads };
    }
    p.splits["state"] = { 2, heads };
    compare(n == 2 ? "states, 2 devices" : "states, 3 devices", p, [](problem & p) {
        const int64_t S = 16, H = 6, T = 2;
        ggml_tensor * r = ggml_gated_delta_net(p.ctx, p.leaf("q", GGML_TYPE_F32, S, H, T), p.leaf("k", GGML_TYPE_F32, S, H, T),
            p.leaf("v", GGML_TYPE_F32, S, H, T), p.leaf("gate", GGML_TYPE_F32, 1, H, T), p.leaf("beta", GGML_TYPE_F32, 1, H, T),
            p.leaf("state", GGML_TYPE_F32, S, S, H), 1);
        const size_t row = S*sizeof(float);
        return ggml_scale(p.ctx, ggml_view_4d(p.ctx, r, S, S, H, 1, row, S*row, S*H*row, H*T*row), 2.0f);
    });
}
