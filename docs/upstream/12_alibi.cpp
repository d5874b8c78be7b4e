// Attention with ALiBi over split heads: slopes are taken from the head's index within the slice.
#include "repro.h"

int main() {
    for (float max_bias : { 0.0f, 8.0f }) {
        problem p;
        p.splits = { { "q", { 2, { 2, 2 } } }, { "k", { 2, { 2, 2 } } }, { "v", { 2, { 2, 2 } } } };
        compare(max_bias > 0 ? "flash attention, ALiBi" : "flash attention", p, [&](problem & p) {
            return ggml_flash_attn_ext(p.ctx, p.leaf("q", GGML_TYPE_F32, 32, 4, 4), p.leaf("k", GGML_TYPE_F32, 32, 16, 4),
                p.leaf("v", GGML_TYPE_F32, 32, 16, 4), p.leaf("mask", GGML_TYPE_F16, 16, 4), 0.17f, max_bias, 0.0f);
        });
    }
}
