// GELU without ggml's table: see ggml_cpu_gelu.cpp.
#pragma once

#include "cpu/ggml_cpu_guard.h"

#ifdef __cplusplus
extern "C" {
#endif

// Computes this thread's rows of a GELU or GEGLU if that is wanted; false: it is none, or it is not wanted.
PGG_HIDDEN bool pgg_cpu_gelu(const struct ggml_compute_params * params, struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
