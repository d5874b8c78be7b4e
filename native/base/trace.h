// Traces: what ran when, on which device. The hooks are where ggml calls a backend (memory.cpp), where a meta backend
// hands out its subgraphs (meta_compute.inc), and on the queues of virtual CPUs, which know true begins and ends
// (cpu_stream.cpp, cpu_comm.cpp). Nobody traces: one relaxed load each. See docs/trace.md for what the times mean.
#pragma once

#include "base/guard.h"

#include "ggml-backend-impl.h"

#include <atomic>
#include <cstdint>
#include <memory>

namespace pgg::trace {

PGG_API std::atomic<int> n_open; // traces that are being taken, of any thread

inline bool any() { return n_open.load(std::memory_order_relaxed) != 0; }

PGG_API int64_t now() noexcept; // nanoseconds of a clock that only goes forward

// The traces that get what a thread does, and what it has others do. NULL: none.
struct audience;
using audience_ptr = std::shared_ptr<const audience>;
PGG_API audience_ptr listening() noexcept;
PGG_API bool         wants_sync(const audience & to) noexcept;
PGG_API void         record(const audience & to, const pgg_trace_event & e, const char * label) noexcept;
// an event of this thread, with what is the same in all of them filled in
PGG_API pgg_trace_event event(int kind, ggml_backend_dev_t device) noexcept;

PGG_API uint64_t next_number() noexcept; // joins events; also numbers graphs

// What this thread is having computed; who knows more tells those that it calls.
struct task {
    uint64_t     graph    = 0;  // 0: not by a meta backend
    int          subgraph = 0;
    int          kind     = PGG_TRACE_COMPUTE;
    int          nodes    = -1; // -1: those of the graph given
    const char * label    = nullptr;
    int64_t      start    = 0;     // of the call
    bool         noted    = false; // the one called has recorded it, or will
    bool         synced   = false; // it was waited for within the call
};
PGG_API task & current() noexcept;

// While one lives, nobody listens to this thread.
struct PGG_TYPE mute {
    mute() noexcept;
    ~mute();
    mute(const mute &) = delete;
    mute & operator=(const mute &) = delete;
};

// Work that waits in a queue. It is recorded by who does it; a trace that ends waits until all of its work is gone.
struct PGG_TYPE queued {
    audience_ptr    to;
    pgg_trace_event e;
    char            label[GGML_MAX_NAME];

    queued(audience_ptr to, const pgg_trace_event & e, const char * label) noexcept;
    ~queued();
    queued(const queued &) = delete;
    queued & operator=(const queued &) = delete;

    void done(int64_t start, int64_t end) const noexcept { done(e.kind, start, end, e.peer); }
    // another kind of time on the same occasion
    void done(int kind, int64_t start, int64_t end, ggml_backend_dev_t peer) const noexcept;
};
using ticket = std::unique_ptr<queued>;
// To be called by who puts work into a queue of its own; NULL when nobody listens. The event is exact.
PGG_API ticket enqueued(int kind, ggml_backend_dev_t device, uint64_t bytes) noexcept;
// a graph: with what the thread's task says
PGG_API ticket enqueued(ggml_backend_dev_t device, const ggml_cgraph * g) noexcept;

// Records from its beginning to its end, also when an exception ends it.
struct timed {
    const queued * t;
    int64_t        start;
    explicit timed(const ticket & of) noexcept : t(of.get()), start(t != nullptr ? now() : 0) {}
    ~timed() {
        if (t != nullptr) {
            t->done(start, now());
        }
    }
    timed(const timed &) = delete;
    timed & operator=(const timed &) = delete;
};

inline ggml_backend_dev_t device_of(ggml_backend_t backend) { return backend->device; }
inline ggml_backend_dev_t device_of(ggml_backend_buffer_t buffer) { return buffer->buft->device; }

// A call of the host that takes time, as the argument that the call gets: it lives until the call has returned.
template <class T> class call {
  public:
    call(T target, int kind, uint64_t bytes = 0) noexcept : target(target) {
        if (any()) {
            begin(kind, bytes);
        }
    }
    ~call() {
        if (to != nullptr) {
            end();
        }
    }
    call(const call &) = delete;
    call & operator=(const call &) = delete;
    operator T() const { return target; }

  private:
    T               target;
    audience_ptr    to;
    pgg_trace_event e;
    bool            outer_noted;

    void begin(int kind, uint64_t bytes) noexcept {
        to = listening();
        if (to != nullptr) {
            outer_noted     = current().noted;
            current().noted = false;
            e       = event(kind, device_of(target));
            e.bytes = bytes;
            e.start = now();
        }
    }
    void end() noexcept {
        if (!current().noted) {
            e.end = now();
            record(*to, e, nullptr);
        }
        current().noted = outer_noted;
    }
};
using access  = call<ggml_backend_buffer_t>;
using request = call<ggml_backend_t>;

// A graph given to a backend: recorded as long as the call takes, unless the backend knows better.
class PGG_TYPE computing {
  public:
    computing(ggml_backend_t backend, const ggml_cgraph * g) noexcept : backend(backend) {
        if (any()) {
            begin(g);
        }
    }
    ~computing() {
        if (to != nullptr) {
            end();
        }
    }
    computing(const computing &) = delete;
    computing & operator=(const computing &) = delete;
    operator ggml_backend_t() const { return backend; }

  private:
    ggml_backend_t  backend;
    audience_ptr    to;
    pgg_trace_event e;
    task            outer;
    char            last[GGML_MAX_NAME];

    void begin(const ggml_cgraph * g) noexcept;
    void end() noexcept;
};

} // namespace pgg::trace
