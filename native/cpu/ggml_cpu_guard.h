// Between ggml_cpu.c, which knows ggml's thread pool, and ggml_cpu_guard.cpp, which can catch.
#pragma once

#include "ggml.h"
#include "ggml-cpu.h"

#if defined(_WIN32)
#    define PGG_HIDDEN
#else
#    define PGG_HIDDEN __attribute__((visibility("hidden")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

typedef void (*pgg_cpu_kernel_t)(struct ggml_compute_params * params, struct ggml_tensor * node, struct ggml_tensor * second);

// Runs a kernel on a thread of the pool. False when it failed; the first failure of a graph is kept under its cplan.
PGG_HIDDEN bool pgg_cpu_run(pgg_cpu_kernel_t kernel, struct ggml_compute_params * params, struct ggml_tensor * node,
    struct ggml_tensor * second, int node_index, const struct ggml_cplan * cplan);

// ggml's own ggml_graph_compute
PGG_HIDDEN enum ggml_status pgg_upstream_graph_compute(struct ggml_cgraph * cgraph, struct ggml_cplan * cplan);

#ifdef __cplusplus
}
#endif
