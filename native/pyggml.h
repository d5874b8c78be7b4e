// The C interface of pyggml's native layer: everything here starts with pgg_ and is bound to Python
// together with ggml's own headers (pyggml.lib). Plain C, no macros but the export mark.
#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#if defined(_WIN32)
#    define PGG_API __declspec(dllexport) extern
#else
#    define PGG_API __attribute__((visibility("default"))) extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

//
// guard.cpp: failures of native code become an error of the calling thread
//

enum pgg_error_kind {
    PGG_ERROR_NONE     = 0,
    PGG_ERROR_ABORT    = 1, // a GGML_ASSERT or GGML_ABORT of ggml or llama.cpp
    PGG_ERROR_SPLIT    = 2, // an illegal split
    PGG_ERROR_MEMORY   = 3, // std::bad_alloc, or a device without memory
    PGG_ERROR_DEVICE   = 4, // a device is lost (an RPC server that went away, a kernel that failed)
    PGG_ERROR_ARGUMENT = 5, // an argument that native code refuses
    PGG_ERROR_CPP      = 6, // any other C++ exception
    PGG_ERROR_CALLBACK = 7, // a Python callback raised; the exception is kept on the Python side
    PGG_ERROR_FORK     = 8, // the process was forked from one that uses pyggml
};

// installs the abort callback; aborts outside of a guard then still end the process, with ggml's message
PGG_API void pgg_guard_install(void);
PGG_API void pgg_guard_enter(void);
PGG_API void pgg_guard_leave(void);
PGG_API int  pgg_guard_depth(void);
PGG_API int  pgg_guard_python(void); // how many calls from Python are running on this thread

// The interpreter ends while threads are in native code: the process is to end without destructors of static objects,
// which would take from under them what they use. (Where the C library has no on_exit, nothing changes.)
PGG_API void pgg_exit_at_once(void);

// Between true and false, on this thread: something is being freed. Destructors must not throw, so waiting for a server
// that is gone is no error then.
PGG_API void pgg_freeing(bool on);
PGG_API bool pgg_is_freeing(void);

// true in a child of fork(): every guarded call is refused there
PGG_API int  pgg_forked(void);

// the calling thread's pending error; the first one wins until it is cleared
PGG_API int          pgg_error_pending(void);
PGG_API const char * pgg_error_message(void);
PGG_API void         pgg_error_clear(void);
PGG_API void         pgg_error_set(int kind, const char * message);

// the log lines at level warning and above since the last clear, of the calling thread (reasons for exceptions)
PGG_API const char * pgg_log_tail(void);
PGG_API void         pgg_log_tail_clear(void);
// only those that the latest outermost guarded call logged
PGG_API const char * pgg_log_reason(void);
// called for each log line of ggml and llama.cpp; NULL: lines are only kept for pgg_log_tail
typedef void (*pgg_log_sink_t)(int level, const char * text, void * user_data);
PGG_API void         pgg_log_install(pgg_log_sink_t sink, void * user_data);
// All lines also wait in a bounded queue, whatever thread they came from, so that no foreign thread enters Python:
// take empties it and returns those at min_level and above as "<level> <seconds since the epoch> <text>\n".
// The text is the calling thread's, valid until it takes again.
PGG_API int          pgg_log_waiting(void);
PGG_API const char * pgg_log_take(int min_level);

// Ctrl-C: long waits of ours, and graphs on the plain CPU device, ask this callback every 50 ms on the waiting thread;
// true ends what is being computed. Inside a guard only.
PGG_API void pgg_interrupt_install(ggml_abort_callback callback, void * user_data);
PGG_API bool pgg_interrupt_poll(void);
// for ggml_backend_cpu_set_abort_callback and llama_context_params.abort_callback
PGG_API bool pgg_interrupt_abort(void * unused);

//
// memory.cpp (in guard.cpp's library): bytes by buffer type, counted where buffers are allocated
//

// starts to count every buffer that is allocated from this buffer type (idempotent)
PGG_API void   pgg_buft_watch(ggml_backend_buffer_type_t buft);
PGG_API size_t pgg_buft_allocated(ggml_backend_buffer_type_t buft);       // now
PGG_API size_t pgg_buft_allocated_total(ggml_backend_buffer_type_t buft); // since it is watched

//
// meta.cpp: meta devices with hooks, and what ggml inferred
//

// A split policy: like ggml_backend_meta_get_split_state_t, but it fills `state` and returns true, or returns
// false to leave the tensor to the policy below it (llama.cpp's own for a model's device, mirrored otherwise).
typedef bool (*pgg_split_policy_t)(const struct ggml_tensor * tensor, struct ggml_backend_meta_split_state * state, void * user_data);

// A new meta device over n_devs devices (the record is reused after pgg_meta_device_release). NULL and an error on failure.
PGG_API ggml_backend_dev_t pgg_meta_device_new(ggml_backend_dev_t * devs, size_t n_devs, pgg_split_policy_t policy, void * user_data);
PGG_API void               pgg_meta_device_release(ggml_backend_dev_t meta_dev);
// replaces the policy of any meta device, also of one that llama.cpp made; NULL restores its own
PGG_API void               pgg_meta_device_set_policy(ggml_backend_dev_t meta_dev, pgg_split_policy_t policy, void * user_data);
// a policy for the next meta device that llama.cpp makes on this thread (NULL: none)
PGG_API void               pgg_meta_next_policy(pgg_split_policy_t policy, void * user_data);
// the meta device that llama.cpp made last on this thread since pgg_meta_next_policy, or NULL
PGG_API ggml_backend_dev_t pgg_meta_last_device(void);
PGG_API bool               pgg_meta_device_is(ggml_backend_dev_t dev);
PGG_API size_t             pgg_meta_device_n(ggml_backend_dev_t meta_dev);
PGG_API ggml_backend_dev_t pgg_meta_device_at(ggml_backend_dev_t meta_dev, size_t i);

// the buffers of a meta device that exist now: what for (enum ggml_backend_buffer_usage), whether their tensors were
// placed once (weights, caches) or by a graph, and bytes on each device; returns the number of buffers
struct pgg_meta_buffer {
    int    usage;
    bool   fixed;
    size_t bytes[16]; // GGML_BACKEND_META_MAX_DEVICES
};
PGG_API size_t               pgg_meta_memory(ggml_backend_dev_t meta_dev, struct pgg_meta_buffer * rows, size_t n_rows);

// the inferred split of an allocated tensor of a meta buffer; synced: as the nodes behind it see it
PGG_API bool                 pgg_meta_split_state(const struct ggml_tensor * tensor, bool synced, struct ggml_backend_meta_split_state * state);
// the slice of a tensor on device i (owned by the buffer; valid until the graph is allocated again), or NULL
PGG_API struct ggml_tensor * pgg_meta_slice(const struct ggml_tensor * tensor, size_t i);

// While a capture is on, every graph that a meta backend of this device computes is described as JSON.
// pgg_meta_capture_take returns a malloc'ed UTF-8 string (free with pgg_free): {"graphs": [...]}, see docs/plan-capture.md.
PGG_API void   pgg_meta_capture_begin(ggml_backend_dev_t meta_dev);
PGG_API char * pgg_meta_capture_take(ggml_backend_dev_t meta_dev);
PGG_API void   pgg_free(void * p);

// While a check is on, whatever is refused is noted, and taken for whole on every device so that the rest is judged, too.
// Over simulated devices only. NULL: of the next meta device that llama.cpp makes on this thread. pgg_meta_check_take ends
// this thread's check and returns a malloc'ed string (free with pgg_free):
// {"violations": [...], "unjudged": [names of nodes that are refused only behind what was assumed]}, see docs/check.md.
PGG_API void   pgg_meta_check_begin(ggml_backend_dev_t meta_dev);
PGG_API char * pgg_meta_check_take(void);
// For a policy, about the tensor that it is asked about: its rule cannot be obeyed. Whether a check notes it; the answer
// must then be a legal one.
PGG_API bool   pgg_meta_check_refuse(const char * reason, const char * repair);

// called after each node of a meta graph that this thread computes, with the whole value as contiguous bytes of its type
typedef void (*pgg_node_observer_t)(const struct ggml_tensor * node, const void * data, size_t size, void * user_data);
// one observer more, on this thread; NULL: the one that came last goes
PGG_API void   pgg_meta_observe(ggml_backend_dev_t meta_dev, pgg_node_observer_t observer, void * user_data);

//
// trace.cpp: what ran when
//

enum pgg_trace_kind {
    PGG_TRACE_SPAN      = 0,  // host: a part of a run that Python named
    PGG_TRACE_PREPARE   = 1,  // host: a meta graph before its first subgraph is given to a device (slices, cut, checks)
    PGG_TRACE_QUEUE     = 2,  // host: giving out the subgraphs of a meta graph; computed: how many subgraphs
    PGG_TRACE_SYNC      = 3,  // host: waiting for a device
    PGG_TRACE_COMPUTE   = 4,  // device: a subgraph, or a graph without a meta device
    PGG_TRACE_STEP      = 5,  // device: an addition of ggml's butterfly, or what clears a summand
    PGG_TRACE_ALLREDUCE = 6,  // device: its part of a sum by a communicator; bytes: payload
    PGG_TRACE_WAIT      = 7,  // device: for a peer
    PGG_TRACE_COPY      = 8,  // from peer to device; of device's time
    PGG_TRACE_SEND      = 9,  // the same copy, of the time of the device that is read; peer: where to
    PGG_TRACE_SET       = 10, // from the host to a device
    PGG_TRACE_GET       = 11, // from a device to the host
};

enum pgg_trace_flag {
    PGG_TRACE_EXACT    = 1, // begin and end are those of the work itself; else those of the call that asked for it
    PGG_TRACE_SYNCED   = 2, // the call waited for the work to end
    PGG_TRACE_ON_QUEUE = 4, // on the device's own thread; else on the host thread that asked
};

struct pgg_trace_event {
    int64_t            queued; // when the host asked; times are nanoseconds of pgg_trace_now
    int64_t            start;
    int64_t            end;
    ggml_backend_dev_t device; // NULL: the host
    ggml_backend_dev_t peer;   // or NULL
    uint64_t           bytes;  // payload
    int64_t            moved;  // bytes that this device itself read from others and wrote to others; -1: not known
    uint64_t           join;   // events with the same number, not 0, are parts of one copy or one all-reduce
    uint64_t           graph;  // events with the same number, not 0, are of one graph
    int32_t            subgraph;
    int32_t            kind;     // enum pgg_trace_kind
    int32_t            flags;    // enum pgg_trace_flag
    int32_t            thread;   // of the host that asked
    int32_t            nodes;    // of the subgraph or graph, without views that were put in
    int32_t            computed; // of these, by this device; -1: not counted
    int32_t            label;    // see pgg_trace_label; -1: none
};

struct pgg_trace_totals {
    int64_t  begin;
    int64_t  end;
    uint64_t n_events;
    uint64_t n_labels;
    uint64_t dropped; // events beyond the limit
};

// Begins a trace of what this thread does and has done (everyone: all threads) and returns its number.
// sync: devices without events of ours are waited for after each subgraph, so that their ends are known.
PGG_API uint64_t     pgg_trace_begin(bool everyone, bool sync, uint64_t limit);
// waits for what was queued while it was open
PGG_API void         pgg_trace_end(uint64_t id, struct pgg_trace_totals * totals);
PGG_API size_t       pgg_trace_events(uint64_t id, struct pgg_trace_event * out, size_t n); // in no order
PGG_API const char * pgg_trace_label(uint64_t id, size_t i); // until the trace is freed
PGG_API void         pgg_trace_free(uint64_t id);
PGG_API int64_t      pgg_trace_now(void);
PGG_API void         pgg_trace_span(const char * label, int64_t start); // from start to now, of the calling thread
// between true and false, nobody listens to this thread: what runs is only a plan
PGG_API void         pgg_trace_mute(bool on);

//
// ggml_cpu_gelu.cpp
//

// While on (calls are counted), CPU and virtual CPU devices compute GELU, GELU_QUICK and their GEGLUs of F32 by their formula
// and not by ggml's table, which rounds the argument to F16: for comparisons. Of the whole process.
PGG_API void pgg_cpu_exact_gelu(bool on);

//
// cpu_backend.cpp: virtual CPU devices VCPU0, VCPU1, ...
//

struct pgg_device_stats {
    uint64_t graph_computes;
    uint64_t nodes;            // nodes that were computed (flag COMPUTE, not an empty op)
    uint64_t allreduces;
    uint64_t allreduce_bytes;  // payload: bytes of the reduced tensor, once per all-reduce
    uint64_t copies;           // device to device, this device being the destination
    uint64_t copy_bytes;
    uint64_t sets;
    uint64_t set_bytes;
    uint64_t gets;
    uint64_t get_bytes;
    uint64_t buffer_bytes;     // allocated now
    uint64_t buffer_bytes_peak;
    uint64_t busy_us;          // time in kernels
};

PGG_API ggml_backend_reg_t pgg_vcpu_reg(void);
// device `index` (0..63), made at the first call; n_threads 0: one; memory 0: what the host has
PGG_API ggml_backend_dev_t pgg_vcpu_device(int index, int n_threads, size_t memory);
PGG_API void               pgg_vcpu_set_threads(ggml_backend_dev_t dev, int n_threads);
PGG_API bool               pgg_vcpu_is(ggml_backend_dev_t dev);
PGG_API void               pgg_vcpu_stats(ggml_backend_dev_t dev, struct pgg_device_stats * stats);
PGG_API void               pgg_vcpu_stats_reset(ggml_backend_dev_t dev);
PGG_API const char *       pgg_vcpu_lost(ggml_backend_dev_t dev); // the reason, or NULL while it works
PGG_API void               pgg_vcpu_revive(ggml_backend_dev_t dev);

//
// sim_backend.cpp: simulated devices
//

struct pgg_sim_params {
    const char *       name;        // copied
    const char *       description; // copied, may be NULL
    size_t             memory;      // bytes; allocation beyond it fails as a device without memory does; 0: unlimited
    size_t             alignment;   // 0: 128, or the twin's
    size_t             max_size;    // largest buffer, 0: unlimited, or the twin's
    double             bandwidth;   // bytes/s, 0: unknown
    double             flops;       // FLOP/s, 0: unknown
    ggml_backend_dev_t twin;        // the device to imitate, or NULL
    bool               comm;        // has a communicator (an all-reduce of its own)
};

PGG_API ggml_backend_reg_t pgg_sim_reg(void);
PGG_API ggml_backend_dev_t pgg_sim_device(const struct pgg_sim_params * params); // a slot is reused after release
PGG_API void               pgg_sim_release(ggml_backend_dev_t dev);
PGG_API bool               pgg_sim_is(ggml_backend_dev_t dev);
PGG_API void               pgg_sim_stats(ggml_backend_dev_t dev, struct pgg_device_stats * stats);
PGG_API void               pgg_sim_stats_reset(ggml_backend_dev_t dev);
// while it is on, simulated devices give this thread memory that they do not have: to see how much would be needed
PGG_API void               pgg_sim_unlimited(bool on);

//
// host_plan.cpp: while a thread plans, the host allocates and computes nothing either
//

// Between begin and end, on this thread: buffers of the CPU buffer type are address space only (never touched by
// us, no memory), CPU backends that are made do not compute (they record), files are mapped without reading ahead.
PGG_API void   pgg_plan_mode_begin(void);
PGG_API void   pgg_plan_mode_end(void);
PGG_API bool   pgg_plan_mode(void);
PGG_API size_t pgg_plan_host_bytes(void); // bytes that host buffers of this thread would have taken, since begin
PGG_API void   pgg_host_stats(struct pgg_device_stats * stats); // what CPU backends in plan mode were asked to do

//
// llama_ext.cpp (in libllama): C doors to llama-ext.h
//

struct llama_context;
struct llama_model;

struct pgg_memory_row {
    ggml_backend_buffer_type_t buft;
    size_t model;
    size_t context;
    size_t compute;
};

PGG_API size_t               pgg_llama_memory(const struct llama_context * ctx, struct pgg_memory_row * rows, size_t n_rows); // returns the number of rows
PGG_API struct ggml_cgraph * pgg_llama_graph_reserve(struct llama_context * ctx, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_outputs);
// A context without flash attention, also in tensor mode. llama_init_from_model wants it there, and turns it off for grok, which so has
// no way in; what cannot be split without it is refused where it stands in the graph. V caches cannot be quantized: not checked here.
PGG_API struct llama_context * pgg_llama_init_without_flash_attn(struct llama_model * model, struct llama_context_params params);
PGG_API int                  pgg_llama_n_devices(const struct llama_model * model);
PGG_API ggml_backend_dev_t   pgg_llama_device(const struct llama_model * model, int i);
// a weight of the model by its name in the file, or NULL
PGG_API const struct ggml_tensor * pgg_llama_tensor(const struct llama_model * model, const char * name);
PGG_API bool                 pgg_llama_arch_supports_tensor_split(const char * arch);
// llama_arch.cpp: models that this thread loads may be split whatever their architecture; the rules are the caller's business
PGG_API void                 pgg_llama_allow_any_arch(bool allow);
// llama_graph.cpp: graphs that this thread builds from now on keep F32 keys and values in F32 for flash attention
PGG_API void                 pgg_llama_keep_f32(bool keep);

#ifdef __cplusplus
}
#endif
