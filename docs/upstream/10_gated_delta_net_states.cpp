// The states behind the scores of GATED_DELTA_NET, in the view that llama.cpp takes of them: over three devices, and with an
// argument over two, where they are read through the view and through a cache to which they are copied.
#include "repro.h"

static ggml_tensor * states(problem & p) {
    const int64_t S = 16, H = 6, T = 2;
    const size_t  row = S*sizeof(float);
    ggml_tensor * r = ggml_gated_delta_net(p.ctx, p.leaf("q", GGML_TYPE_F32, S, H, T), p.leaf("k", GGML_TYPE_F32, S, H, T),
        p.leaf("v", GGML_TYPE_F32, S, H, T), p.leaf("gate", GGML_TYPE_F32, 1, H, T), p.leaf("beta", GGML_TYPE_F32, 1, H, T),
        p.leaf("state", GGML_TYPE_F32, S, S, H), 1);
    return ggml_view_4d(p.ctx, r, S, S, H, 1, row, S*row, S*H*row, H*T*row);
}

int main(int argc, char **) {
    problem p;
    p.n_devices = argc > 1 ? 2 : 3;
    const std::vector<int64_t> heads(p.n_devices, 6/p.n_devices);
    for (const char * name : { "q", "k", "v", "gate", "beta" }) {
        p.splits[name] = { 1, heads };
    }
    p.splits["state"] = p.splits["cache"] = { 2, heads };
    compare(argc > 1 ? "states, 2 devices" : "states, 3 devices", p, [](problem & p) { return ggml_scale(p.ctx, states(p), 2.0f); });

    ggml_tensor * cache = nullptr;
    std::vector<float> out[2];
    for (bool on_meta : { false, true }) {
        compute(p, [&](problem & p) {
            cache = p.leaf("cache", GGML_TYPE_F32, 16, 16, 6);
            return ggml_cpy(p.ctx, states(p), cache);
        }, on_meta, [&](problem &) { out[on_meta] = read(cache); });
    }
    printf("copied to a cache: %s, NMSE %.2g\n", verdict(nmse(out[0], out[1])), nmse(out[0], out[1]));
}
