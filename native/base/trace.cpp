// Collects the events of traces. See trace.h.

#include "base/trace.h"
#include "base/guard.h"

#include "ggml-impl.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

namespace pgg::trace {

std::atomic<int> n_open{0};

namespace {

// Events of some threads: those that work at the same time hardly ever meet in one.
struct shard {
    std::mutex                                mutex; // of all that follows
    std::deque<pgg_trace_event>               events; // in pieces: none is moved when there are more
    std::deque<std::string>                   labels;
    std::unordered_map<std::string_view, int> label_numbers; // views of the labels, which stay where they are

    int number_of(const char * label) {
        auto it = label_numbers.find(label);
        if (it == label_numbers.end()) {
            labels.emplace_back(label);
            it = label_numbers.emplace(labels.back(), (int) labels.size() - 1).first;
        }
        return it->second;
    }
};

struct session {
    static constexpr size_t N_SHARDS = 16;

    std::thread::id owner;
    bool            everyone = false; // all threads, not the owner only
    bool            sync     = false;
    uint64_t        limit    = 0;
    int64_t         begin    = 0;

    shard                 shards[N_SHARDS];
    std::atomic<uint64_t> n_events{0}; // also those beyond the limit
    std::atomic<uint64_t> lost{0};     // for want of memory
    std::atomic<bool>     closed{false};

    // work that is queued, and who waits for it
    std::atomic<int64_t>    waiting{0};
    std::atomic<bool>       awaited{false};
    std::mutex              mutex;
    std::condition_variable idle;
    int64_t                 end = 0;

    void add(const pgg_trace_event & e, const char * label, int thread) {
        if (closed.load(std::memory_order_relaxed) || n_events.fetch_add(1, std::memory_order_relaxed) >= limit) {
            return;
        }
        shard & s = shards[(size_t) thread % N_SHARDS];
        std::lock_guard<std::mutex> lock(s.mutex);
        if (closed.load(std::memory_order_relaxed)) {
            return; // who closed it may have counted what is here
        }
        try {
            const int number = label != nullptr && *label != '\0' ? s.number_of(label) : -1;
            s.events.push_back(e);
            s.events.back().label = number;
        } catch (const std::bad_alloc &) {
            lost.fetch_add(1, std::memory_order_relaxed);
        }
    }

    void done() {
        if (waiting.fetch_sub(1) == 1 && awaited.load()) {
            { std::lock_guard<std::mutex> lock(mutex); }
            idle.notify_all();
        }
    }

    void await() {
        awaited.store(true);
        std::unique_lock<std::mutex> lock(mutex);
        while (waiting.load() > 0) {
            idle.wait_for(lock, std::chrono::milliseconds(50));
            lock.unlock();
            const bool stop = waiting.load() > 0 && pgg_interrupt_poll();
            lock.lock();
            if (stop) {
                return;
            }
        }
    }
};

// Immortal: threads may still look while the process ends.
struct registry {
    std::mutex                                    mutex;
    std::map<uint64_t, std::shared_ptr<session>>  sessions;
    uint64_t                                      last = 0;
};

registry & all() {
    static registry * r = new registry;
    return *r;
}

std::atomic<uint64_t> generation{1}; // raised when a trace begins or ends
std::atomic<uint64_t> numbers{0};
std::atomic<int>      n_threads{0};

} // namespace

struct audience {
    std::vector<std::shared_ptr<session>> sessions;
    bool                                  sync = false;
};

namespace {

struct thread_view {
    uint64_t     generation = 0;
    audience_ptr to;
    int          muted  = 0;
    int          number = n_threads.fetch_add(1);
    task         now;
};

thread_view & view() {
    static thread_local thread_view v;
    return v;
}

std::shared_ptr<session> find(uint64_t id) {
    std::lock_guard<std::mutex> lock(all().mutex);
    auto it = all().sessions.find(id);
    if (it == all().sessions.end()) {
        pgg_error_set(PGG_ERROR_ARGUMENT, ("there is no trace " + std::to_string(id)).c_str());
        return nullptr;
    }
    return it->second;
}

} // namespace

int64_t now() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint64_t next_number() noexcept {
    return numbers.fetch_add(1) + 1;
}

task & current() noexcept {
    return view().now;
}

mute::mute() noexcept {
    view().muted++;
}

mute::~mute() {
    view().muted--;
}

audience_ptr listening() noexcept {
    thread_view & v = view();
    if (v.muted > 0) {
        return nullptr;
    }
    const uint64_t g = generation.load(std::memory_order_acquire);
    if (v.generation != g) {
        try {
            auto to = std::make_shared<audience>();
            std::lock_guard<std::mutex> lock(all().mutex);
            for (const auto & it : all().sessions) {
                session & s = *it.second;
                if (!s.closed.load() && (s.everyone || s.owner == std::this_thread::get_id())) {
                    to->sessions.push_back(it.second);
                    to->sync = to->sync || s.sync;
                }
            }
            v.to         = to->sessions.empty() ? nullptr : std::move(to);
            v.generation = g;
        } catch (const std::exception &) {
            return nullptr;
        }
    }
    return v.to;
}

bool wants_sync(const audience & to) noexcept {
    return to.sync;
}

void record(const audience & to, const pgg_trace_event & e, const char * label) noexcept {
    const int thread = view().number;
    for (const auto & s : to.sessions) {
        s->add(e, label, thread);
    }
}

pgg_trace_event event(int kind, ggml_backend_dev_t device) noexcept {
    pgg_trace_event e;
    memset(&e, 0, sizeof(e));
    e.kind   = kind;
    e.device = device;
    e.moved  = -1;
    e.thread = view().number;
    e.queued = now();
    e.label  = -1;
    e.computed = -1;
    return e;
}

//
// work in queues
//

queued::queued(audience_ptr listeners, const pgg_trace_event & event, const char * text) noexcept : to(std::move(listeners)), e(event) {
    snprintf(label, sizeof(label), "%s", text != nullptr ? text : "");
    for (const auto & s : to->sessions) {
        s->waiting.fetch_add(1);
    }
}

queued::~queued() {
    for (const auto & s : to->sessions) {
        s->done();
    }
}

void queued::done(int kind, int64_t start, int64_t end, ggml_backend_dev_t peer) const noexcept {
    pgg_trace_event copy = e;
    copy.kind  = kind;
    copy.start = start;
    copy.end   = end;
    copy.peer  = peer;
    if (kind != e.kind) { // waiting moves nothing
        copy.bytes = 0;
        copy.moved = -1;
    }
    record(*to, copy, label);
}

static ticket make_ticket(audience_ptr to, pgg_trace_event & e, const char * label) noexcept {
    e.flags |= PGG_TRACE_EXACT | PGG_TRACE_ON_QUEUE;
    try {
        return std::make_unique<queued>(std::move(to), e, label);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

ticket enqueued(int kind, ggml_backend_dev_t device, uint64_t bytes) noexcept {
    if (!any()) {
        return nullptr;
    }
    audience_ptr to = listening();
    if (to == nullptr) {
        return nullptr;
    }
    task & t = current();
    t.noted = true;
    pgg_trace_event e = event(kind, device);
    e.bytes    = bytes;
    e.graph    = t.graph;
    e.subgraph = t.subgraph;
    return make_ticket(std::move(to), e, nullptr);
}

static void describe(pgg_trace_event & e, const task & t, const ggml_cgraph * g, const char ** label) {
    e.kind     = t.kind;
    e.graph    = t.graph != 0 ? t.graph : next_number();
    e.subgraph = t.subgraph;
    e.nodes    = t.nodes >= 0 ? t.nodes : g->n_nodes;
    *label     = t.label != nullptr ? t.label : g->n_nodes > 0 ? g->nodes[g->n_nodes - 1]->name : nullptr;
}

ticket enqueued(ggml_backend_dev_t device, const ggml_cgraph * g) noexcept {
    if (!any()) {
        return nullptr;
    }
    audience_ptr to = listening();
    if (to == nullptr) {
        return nullptr;
    }
    task & t = current();
    t.noted = true;
    pgg_trace_event e = event(PGG_TRACE_COMPUTE, device);
    const char * label = nullptr;
    describe(e, t, g, &label);
    return make_ticket(std::move(to), e, label);
}

void computing::begin(const ggml_cgraph * g) noexcept {
    to = listening();
    if (to == nullptr) {
        return;
    }
    outer     = current();
    current() = task();
    e         = event(PGG_TRACE_COMPUTE, device_of(backend));
    e.nodes   = g->n_nodes;
    e.start   = now();
    current().start = e.start;
    if (backend->iface.synchronize == nullptr) {
        e.flags |= PGG_TRACE_EXACT; // it has computed when it returns
        uint64_t n = 0;
        for (int i = 0; i < g->n_nodes; i++) {
            n += (g->nodes[i]->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_op_is_empty(g->nodes[i]->op);
        }
        e.computed = (int32_t) n;
    }
    // the backend may change the graph or leave nothing of it
    last[0] = '\0';
    if (g->n_nodes > 0) {
        snprintf(last, sizeof(last), "%s", g->nodes[g->n_nodes - 1]->name);
    }
}

void computing::end() noexcept {
    task t = current();
    current() = outer;
    if (t.noted) {
        return;
    }
    if (t.graph == 0 && wants_sync(*to) && backend->iface.synchronize != nullptr) {
        const mute quiet;
        try {
            backend->iface.synchronize(backend);
            t.synced = true;
        } catch (...) { // who waits next is told
        }
    }
    e.end      = now();
    e.kind     = t.kind;
    e.graph    = t.graph != 0 ? t.graph : next_number();
    e.subgraph = t.subgraph;
    if (t.nodes >= 0) {
        e.nodes = t.nodes;
    }
    if (t.synced) {
        e.flags |= PGG_TRACE_SYNCED;
    }
    record(*to, e, t.label != nullptr ? t.label : last);
}

} // namespace pgg::trace

using namespace pgg::trace;

extern "C" {

uint64_t pgg_trace_begin(bool everyone, bool sync, uint64_t limit) {
    return pgg::guarded([&] {
        auto s = std::make_shared<session>();
        s->owner    = std::this_thread::get_id();
        s->everyone = everyone;
        s->sync     = sync;
        s->limit    = limit;
        s->begin    = now();
        std::lock_guard<std::mutex> lock(all().mutex);
        all().sessions[++all().last] = s;
        n_open.fetch_add(1);
        generation.fetch_add(1);
        return all().last;
    }, uint64_t(0));
}

void pgg_trace_end(uint64_t id, struct pgg_trace_totals * totals) {
    *totals = {};
    std::shared_ptr<session> s = find(id);
    if (s == nullptr) {
        return;
    }
    s->await();
    if (!s->closed.exchange(true)) {
        s->end = now();
        n_open.fetch_sub(1);
        generation.fetch_add(1);
    }
    totals->begin = s->begin;
    totals->end   = s->end;
    for (shard & one : s->shards) {
        std::lock_guard<std::mutex> lock(one.mutex);
        totals->n_events += one.events.size();
        totals->n_labels += one.labels.size();
    }
    const uint64_t asked = s->n_events.load();
    totals->dropped = s->lost.load() + (asked > s->limit ? asked - s->limit : 0);
}

size_t pgg_trace_events(uint64_t id, struct pgg_trace_event * out, size_t n) {
    std::shared_ptr<session> s = find(id);
    if (s == nullptr) {
        return 0;
    }
    size_t written = 0, labels = 0;
    for (shard & one : s->shards) {
        std::lock_guard<std::mutex> lock(one.mutex);
        for (const pgg_trace_event & e : one.events) {
            if (written == n) {
                return n;
            }
            out[written] = e;
            out[written].label += e.label >= 0 ? (int32_t) labels : 0;
            written++;
        }
        labels += one.labels.size();
    }
    return written;
}

const char * pgg_trace_label(uint64_t id, size_t i) {
    std::shared_ptr<session> s = find(id);
    if (s == nullptr) {
        return nullptr;
    }
    for (shard & one : s->shards) {
        std::lock_guard<std::mutex> lock(one.mutex);
        if (i < one.labels.size()) {
            return one.labels[i].c_str();
        }
        i -= one.labels.size();
    }
    return nullptr;
}

void pgg_trace_free(uint64_t id) {
    struct pgg_trace_totals totals;
    pgg_trace_end(id, &totals);
    std::shared_ptr<session> s;
    {
        std::lock_guard<std::mutex> lock(all().mutex);
        auto it = all().sessions.find(id);
        if (it == all().sessions.end()) {
            return;
        }
        s = std::move(it->second);
        all().sessions.erase(it);
    }
    for (shard & one : s->shards) { // threads hold on to what they listened for until they look again
        std::lock_guard<std::mutex> lock(one.mutex);
        one.events = {};
        one.label_numbers.clear();
        one.labels = {};
    }
}

int64_t pgg_trace_now(void) {
    return now();
}

void pgg_trace_span(const char * label, int64_t start) {
    if (!any()) {
        return;
    }
    if (audience_ptr to = listening()) {
        pgg_trace_event e = event(PGG_TRACE_SPAN, nullptr);
        e.queued = e.start = start;
        e.end    = now();
        record(*to, e, label);
    }
}

void pgg_trace_mute(bool on) {
    view().muted += on ? 1 : -1;
}

} // extern "C"
