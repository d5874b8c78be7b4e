// Query heads are split, two KV heads are whole on every device: heads are paired by their index within the slice.
#include "repro.h"

int main() {
    problem p;
    p.splits = { { "q", { 2, { 2, 2 } } } };
    for (int n_kv : { 1, 2 }) {
        compare(n_kv == 1 ? "1 KV head" : "2 KV heads", p, [&](problem & p) {
            return ggml_flash_attn_ext(p.ctx, p.leaf("q", GGML_TYPE_F32, 32, 4, 4), p.leaf("k", GGML_TYPE_F32, 32, 16, n_kv),
                p.leaf("v", GGML_TYPE_F32, 32, 16, n_kv), p.leaf("mask", GGML_TYPE_F16, 16, 4), 0.17f, 0.0f, 0.0f);
        });
    }
}
