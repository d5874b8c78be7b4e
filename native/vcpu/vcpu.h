// What the parts of the virtual CPU backend share: its devices, and the streams of work on them. See cpu_backend.cpp.
#pragma once

#include "vcpu/graph_copy.h"
#include "base/guard.h"
#include "base/trace.h"
#include "vcpu/work_queue.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <vector>

namespace pgg::vcpu {

constexpr int MAX_DEVICES = 64;
constexpr int MAX_THREADS = GGML_MAX_N_THREADS;

extern std::atomic<bool> in_child; // a fork has left us without our threads
extern std::atomic<bool> closing;  // the process ends: skip what is queued

struct failure {
    int               kind;
    std::string       message;
    std::atomic<bool> delivered{false};
    failure(int kind, std::string message) : kind(kind), message(std::move(message)) {}
};
using failure_ptr = std::shared_ptr<failure>;

struct counters {
    std::atomic<uint64_t> graph_computes{0}, nodes{0}, allreduces{0}, allreduce_bytes{0}, copies{0}, copy_bytes{0},
        sets{0}, set_bytes{0}, gets{0}, get_bytes{0}, buffer_bytes{0}, buffer_bytes_peak{0}, busy_us{0};
};

// Immortal, like its place in the list.
struct device {
    const int                index;
    const std::string        name;
    std::string              description;
    std::atomic<int>         n_threads;
    std::atomic<size_t>      memory;
    ggml_backend_buffer_type buft{};
    ggml_backend_device      dev{};
    counters                 stats;
    work_queue               queue;
    std::atomic<const std::string *> lost{nullptr}; // never freed: callers hold the text

    std::mutex                               spare_mutex;
    std::vector<std::unique_ptr<graph_copy>> spare;

    // of the device's thread
    ggml_backend_t    cpu          = nullptr;
    ggml_threadpool_t pool         = nullptr;
    int               pool_threads = 1;

    device(int index, int n_threads, size_t memory)
        : index(index), name("VCPU" + std::to_string(index)), n_threads(n_threads), memory(memory), queue(name) {}
};

struct stream;

// The streams of one communicator work on the same graph, so a cause often fails on several of them. Who is told of one
// failure is told of all.
struct team {
    std::mutex            mutex;
    std::vector<stream *> members;
};

// A backend of ggml: what is queued through one handle.
struct stream {
    device &              dev;
    std::atomic<uint64_t> last_ticket{0};
    std::atomic<bool>     poisoned{false};
    std::mutex            mutex; // guards poison
    failure_ptr           poison;
    std::shared_ptr<team> mates;

    std::atomic<ggml_abort_callback> abort_callback{nullptr};
    std::atomic<void *>              abort_data{nullptr};

    explicit stream(device & dev) : dev(dev) {}

    failure_ptr failed() {
        if (!poisoned.load(std::memory_order_acquire)) {
            return nullptr;
        }
        std::lock_guard<std::mutex> lock(mutex);
        return poison;
    }
    void fail(const failure_ptr & f) {
        std::lock_guard<std::mutex> lock(mutex);
        if (poison == nullptr) {
            poison = f;
            poisoned.store(true, std::memory_order_release);
        }
    }
    // works again afterwards
    failure_ptr recover() {
        if (!poisoned.load(std::memory_order_acquire)) {
            return nullptr;
        }
        dev.queue.wait(last_ticket.load()); // what was queued behind the failure must be skipped, not run
        std::lock_guard<std::mutex> lock(mutex);
        failure_ptr f = std::move(poison);
        poison.reset();
        poisoned.store(false, std::memory_order_release);
        return f;
    }
    void queued(uint64_t ticket) {
        uint64_t before = last_ticket.load();
        while (before < ticket && !last_ticket.compare_exchange_weak(before, ticket)) {
        }
    }
};

struct memory_block {
    device & dev;
    void *   data;
    size_t   size;
};

inline device & dev_of(ggml_backend_buffer_type_t buft) { return *(device *) buft->context; }
inline device & dev_of(ggml_backend_buffer_t buffer)    { return ((memory_block *) buffer->context)->dev; }
inline device & dev_of(ggml_backend_dev_t dev)          { return *(device *) dev->context; }
inline stream & stream_of(ggml_backend_t backend)       { return *(stream *) backend->context; }

bool is_vcpu(ggml_backend_buffer_t buffer);
bool is_vcpu(ggml_backend_t backend);

inline ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src != nullptr ? t->view_src->buffer : t->buffer;
}

extern const ggml_backend_i             backend_interface;
extern const ggml_backend_buffer_type_i buft_interface;

// The failure of a stream that is to be delivered now, if there is one; the stream and its mates work again.
failure_ptr take_failure(stream & s);
// Throws inside a guard; otherwise a pending error and a log line.
void report(int kind, const std::string & message);
// Whether the device takes work, and else the reason.
bool usable(const device & d, int * kind, std::string * why);

inline void count(std::atomic<uint64_t> & n, std::atomic<uint64_t> & bytes, size_t size) {
    n.fetch_add(1, std::memory_order_relaxed);
    bytes.fetch_add(size, std::memory_order_relaxed);
}

// Queues f for a stream. f runs inside a guard, and not at all when the stream has failed.
template <class F> void enqueue(stream & s, F && f) {
    s.queued(s.dev.queue.push(make_work([&s, f = std::forward<F>(f)]() mutable {
        if (s.failed() != nullptr || closing.load(std::memory_order_relaxed)) {
            return;
        }
        guard_scope scope;
        pgg_error_clear();
        try {
            f();
            return;
        } PGG_CATCH
        s.fail(std::make_shared<failure>(pgg_error_pending(), s.dev.name + ": " + pgg_error_message()));
        pgg_error_clear();
    })));
}

// One mutex for work that goes to several queues at once: all queues get it in the same order, so they cannot wait
// for each other in a circle.
std::mutex & several();

//
// cpu_comm.cpp
//

void * comm_init(ggml_backend_t * backends, size_t n);
void   comm_free(void * comm);
bool   comm_allreduce_tensor(void * comm, ggml_tensor ** tensors);

} // namespace pgg::vcpu
