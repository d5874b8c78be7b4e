// ADD_ID of a bias that is partial by rule, behind a sum that is complete: every device adds its own part only.
#include "repro.h"

int main() {
    for (bool directly : { true, false }) {
        problem p;
        p.splits = { { "experts", { 0, { 16, 16 } } }, { "x", { 0, { 16, 16 } } }, { "bias", { GGML_BACKEND_SPLIT_AXIS_PARTIAL, {} } } };
        p.ints   = { { "ids", { 0, 1, 1, 0 } } };
        compare(directly ? "partial bias directly behind the sum" : "partial bias behind a SCALE of the sum", p, [&](problem & p) {
            ggml_tensor * ids = p.leaf("ids", GGML_TYPE_I32, 1, 4);
            ggml_tensor * y   = ggml_mul_mat_id(p.ctx, p.leaf("experts", GGML_TYPE_F32, 32, 4, 2), p.leaf("x", GGML_TYPE_F32, 32, 1, 4), ids);
            y = directly ? y : ggml_scale(p.ctx, y, 2.0f);
            return ggml_scale(p.ctx, ggml_add_id(p.ctx, y, p.leaf("bias", GGML_TYPE_F32, 4, 2), ids), 1.0f);
        });
    }
}
