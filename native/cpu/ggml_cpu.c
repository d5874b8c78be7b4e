// Takes the place of ggml-cpu.c in ggml-cpu, and includes it with three names changed, so that a failure in a kernel
// reaches the caller of ggml_graph_compute whatever thread of the pool it happens on:
//
// - ggml_compute_forward is defined as pgg_upstream_forward, and called through pgg_forward, which catches;
// - so is the one fused kernel;
// - ggml_graph_compute is defined as pgg_upstream_graph_compute, and called through ours (ggml_cpu_guard.cpp), which
//   makes what was caught the pending error of the calling thread and returns GGML_STATUS_FAILED.
//
// A definition and a call are told apart by the first token of an argument: `struct` or a variable's name. The texts
// that this relies on are listed in cmake/upstream_names.txt.
//
// After a failure all threads leave the graph at the barrier behind the node, as they do when an abort callback asks
// for it. So a kernel must fail on all threads alike, or after its last barrier, or else the other threads wait for the
// failed one in it. Assertions on types and shapes are alike on all threads. Those on data are not; the ones
// that upstream has or lacks are made up for by a check of all indices, on every thread, before the kernel runs.

#include "cpu/ggml_cpu_gelu.h"
#include "cpu/ggml_cpu_guard.h"

#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "ops.h"

struct ggml_threadpool;

static void pgg_forward(struct ggml_compute_params * params, struct ggml_tensor * node, int last_node, struct ggml_threadpool * tp);
static void pgg_forward_fused(const struct ggml_compute_params * params, struct ggml_tensor * node, struct ggml_tensor * second, int last_node);

#define PGG_FORWARD_struct pgg_upstream_forward(struct ggml_compute_params * params, struct
#define PGG_FORWARD_node   pgg_forward(&params, node, node_n, tp
#define ggml_compute_forward(a, b) PGG_FORWARD_##b)

#define ggml_compute_forward_rms_norm_mul_fused(a, b, c) pgg_forward_fused(a, b, c, node_n + 1)

#define PGG_COMPUTE_struct pgg_upstream_graph_compute(struct
#define PGG_COMPUTE_cgraph ggml_graph_compute(cgraph
#define ggml_graph_compute(a, b) PGG_COMPUTE_##a, b)

// The helpers that write or read single elements from the host: a tensor without memory is an error, not address zero.
#define ggml_set_i32    pgg_upstream_set_i32
#define ggml_set_f32    pgg_upstream_set_f32
#define ggml_get_i32_1d pgg_upstream_get_i32_1d
#define ggml_set_i32_1d pgg_upstream_set_i32_1d
#define ggml_get_f32_1d pgg_upstream_get_f32_1d
#define ggml_set_f32_1d pgg_upstream_set_f32_1d
#define ggml_get_i32_nd pgg_upstream_get_i32_nd
#define ggml_set_i32_nd pgg_upstream_set_i32_nd
#define ggml_get_f32_nd pgg_upstream_get_f32_nd
#define ggml_set_f32_nd pgg_upstream_set_f32_nd

#if defined(__GNUC__)
#define PGG_HIDDEN __attribute__((visibility("hidden")))
#else
#define PGG_HIDDEN
#endif
PGG_HIDDEN struct ggml_tensor * ggml_set_i32(struct ggml_tensor * t, int32_t value);
PGG_HIDDEN struct ggml_tensor * ggml_set_f32(struct ggml_tensor * t, float value);
PGG_HIDDEN int32_t ggml_get_i32_1d(const struct ggml_tensor * t, int i);
PGG_HIDDEN void    ggml_set_i32_1d(const struct ggml_tensor * t, int i, int32_t value);
PGG_HIDDEN float   ggml_get_f32_1d(const struct ggml_tensor * t, int i);
PGG_HIDDEN void    ggml_set_f32_1d(const struct ggml_tensor * t, int i, float value);
PGG_HIDDEN int32_t ggml_get_i32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3);
PGG_HIDDEN void    ggml_set_i32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3, int32_t value);
PGG_HIDDEN float   ggml_get_f32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3);
PGG_HIDDEN void    ggml_set_f32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3, float value);

#include "ggml-cpu.c"

#undef ggml_set_i32
#undef ggml_set_f32
#undef ggml_get_i32_1d
#undef ggml_set_i32_1d
#undef ggml_get_f32_1d
#undef ggml_set_f32_1d
#undef ggml_get_i32_nd
#undef ggml_set_i32_nd
#undef ggml_get_f32_nd
#undef ggml_set_f32_nd
#undef ggml_compute_forward
#undef ggml_compute_forward_rms_norm_mul_fused
#undef ggml_graph_compute

static void pgg_leave(struct ggml_threadpool * tp, int last_node) {
    // several threads may come here, all with the same values
#if defined(__GNUC__)
    __atomic_store_n(&tp->ec, GGML_STATUS_FAILED, __ATOMIC_RELAXED);
#else
    tp->ec = GGML_STATUS_FAILED;
#endif
    atomic_store_explicit(&tp->abort, last_node + 1, memory_order_relaxed);
}

static void pgg_run_plain(struct ggml_compute_params * params, struct ggml_tensor * node, struct ggml_tensor * second) {
    if (!pgg_cpu_gelu(params, node)) {
        pgg_upstream_forward(params, node);
    }
    UNUSED(second);
}

static void pgg_run_fused(struct ggml_compute_params * params, struct ggml_tensor * node, struct ggml_tensor * second) {
    ggml_compute_forward_rms_norm_mul_fused(params, node, second);
}

static void pgg_forward(struct ggml_compute_params * params, struct ggml_tensor * node, int last_node, struct ggml_threadpool * tp) {
    if (!pgg_cpu_run(pgg_run_plain, params, node, NULL, last_node, tp->cplan)) {
        pgg_leave(tp, last_node);
    }
}

static void pgg_forward_fused(const struct ggml_compute_params * params, struct ggml_tensor * node, struct ggml_tensor * second, int last_node) {
    struct ggml_threadpool * tp = params->threadpool;
    struct ggml_compute_params copy = *params;
    if (!pgg_cpu_run(pgg_run_fused, &copy, node, second, last_node - 1, tp->cplan)) {
        pgg_leave(tp, last_node);
    }
}

static void pgg_need_memory(const struct ggml_tensor * t) {
    if (t->data == NULL || (t->buffer != NULL && !ggml_backend_buffer_is_host(t->buffer))) {
        GGML_ABORT("tensor '%s' has no memory of the host: allocate it there, or use ggml_backend_tensor_set and _get", t->name);
    }
}

struct ggml_tensor * ggml_set_i32(struct ggml_tensor * t, int32_t value) { pgg_need_memory(t); return pgg_upstream_set_i32(t, value); }
struct ggml_tensor * ggml_set_f32(struct ggml_tensor * t, float value)   { pgg_need_memory(t); return pgg_upstream_set_f32(t, value); }

int32_t ggml_get_i32_1d(const struct ggml_tensor * t, int i)                { pgg_need_memory(t); return pgg_upstream_get_i32_1d(t, i); }
void    ggml_set_i32_1d(const struct ggml_tensor * t, int i, int32_t value) { pgg_need_memory(t); pgg_upstream_set_i32_1d(t, i, value); }
float   ggml_get_f32_1d(const struct ggml_tensor * t, int i)                { pgg_need_memory(t); return pgg_upstream_get_f32_1d(t, i); }
void    ggml_set_f32_1d(const struct ggml_tensor * t, int i, float value)   { pgg_need_memory(t); pgg_upstream_set_f32_1d(t, i, value); }

int32_t ggml_get_i32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3) { pgg_need_memory(t); return pgg_upstream_get_i32_nd(t, i0, i1, i2, i3); }
float   ggml_get_f32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3) { pgg_need_memory(t); return pgg_upstream_get_f32_nd(t, i0, i1, i2, i3); }
void    ggml_set_i32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3, int32_t value) { pgg_need_memory(t); pgg_upstream_set_i32_nd(t, i0, i1, i2, i3, value); }
void    ggml_set_f32_nd(const struct ggml_tensor * t, int i0, int i1, int i2, int i3, float value)   { pgg_need_memory(t); pgg_upstream_set_f32_nd(t, i0, i1, i2, i3, value); }
