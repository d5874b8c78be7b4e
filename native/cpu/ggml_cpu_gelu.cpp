// GELU without ggml's table, on request: see pgg_cpu_exact_gelu in pyggml.h.
//
// ggml's CPU rounds GELU's argument to F16 and looks the result up. Where two ways to compute a sum differ in the last bit,
// the results can so be a whole F16 step apart: about 5e-4 of the value. That hides what a comparison is to find.

#include "pyggml.h"

#include "cpu/ggml_cpu_gelu.h"

#include "ggml-impl.h"
#include "vec.h"
#include "ggml-cpu-impl.h"

#include <algorithm>
#include <atomic>

static std::atomic<int> wanted{0};

void pgg_cpu_exact_gelu(bool on) {
    wanted += on ? 1 : -1;
}

namespace {

using function_t = float (*)(float);

// what the node computes of its argument, or NULL where upstream's kernel is to do it
function_t function_of(const ggml_tensor * node) {
    if (node->type != GGML_TYPE_F32 || node->src[0] == nullptr || node->src[0]->type != GGML_TYPE_F32) {
        return nullptr;
    }
    if (node->op == GGML_OP_UNARY) {
        switch (ggml_get_unary_op(node)) {
            case GGML_UNARY_OP_GELU:       return ggml_gelu_f32;
            case GGML_UNARY_OP_GELU_QUICK: return ggml_gelu_quick_f32;
            default:                       return nullptr;
        }
    }
    if (node->op == GGML_OP_GLU) {
        switch (ggml_get_glu_op(node)) {
            case GGML_GLU_OP_GEGLU:       return ggml_gelu_f32;
            case GGML_GLU_OP_GEGLU_QUICK: return ggml_gelu_quick_f32;
            default:                      return nullptr;
        }
    }
    return nullptr;
}

const float * row_of(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return (const float *) ((const char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
}

} // namespace

bool pgg_cpu_gelu(const ggml_compute_params * params, ggml_tensor * node) {
    if (wanted.load(std::memory_order_relaxed) <= 0) {
        return false;
    }
    const function_t f = function_of(node);
    if (f == nullptr) {
        return false;
    }
    const ggml_tensor * x = node->src[0];
    const ggml_tensor * gate = node->op == GGML_OP_GLU ? (node->src[1] != nullptr ? node->src[1] : x) : nullptr;
    if (x->nb[0] != sizeof(float) || node->nb[0] != sizeof(float) || (gate != nullptr && (gate->nb[0] != sizeof(float) || gate->type != GGML_TYPE_F32))) {
        return false;
    }
    const int64_t n = node->ne[0], rows = ggml_nrows(node), per_thread = (rows + params->nth - 1)/params->nth;
    // one source holds both halves; the one that goes through the function is the first, unless they are swapped
    const bool halves = gate == x && gate != nullptr, swapped = halves && ggml_get_op_params_i32(node, 1) != 0;
    const int64_t last = std::min(rows, per_thread*(params->ith + 1));
    for (int64_t r = per_thread*params->ith; r < last; r++) {
        const int64_t i1 = r % node->ne[1], i2 = r/node->ne[1] % node->ne[2], i3 = r/(node->ne[1]*node->ne[2]);
        const float * from = row_of(x, i1, i2, i3) + (swapped ? n : 0);
        const float * by = gate == nullptr ? nullptr : row_of(gate, i1, i2, i3) + (halves && !swapped ? n : 0);
        float * to = const_cast<float *>(row_of(node, i1, i2, i3));
        for (int64_t i = 0; i < n; i++) {
            to[i] = by == nullptr ? f(from[i]) : f(from[i])*by[i];
        }
    }
    return true;
}
