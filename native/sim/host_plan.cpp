// Plan mode: while a thread plans, the host allocates and computes nothing either. Buffers in host memory become
// address space that stays untouched, and CPU backends that are made count their graphs without running them.
// (That files are mapped without reading ahead is in llama_mmap.cpp.)
//
// ggml's buffer types and devices are structs of function pointers that can be reached and changed. The hooks are
// put there when a thread plans for the first time and stay; outside of plan mode they pass every call on.

#include "sim/host_plan.h"
#include "base/guard.h"
#include "base/trace.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    ifndef NOMINMAX
#        define NOMINMAX
#    endif
#    include <windows.h>
#else
#    include <sys/mman.h>
#endif

namespace {

//
// What one thread plans, from the outermost begin on. Buffers keep it alive.
//

struct plan_scope {
    std::atomic<uint64_t> graph_computes{0}, nodes{0}, sets{0}, set_bytes{0}, gets{0}, get_bytes{0}, copies{0}, copy_bytes{0};

    void took(size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        bytes += size;
        peak = std::max(peak, bytes);
    }
    void gave(size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        bytes -= size;
    }
    void memory(size_t & now, size_t & most) {
        std::lock_guard<std::mutex> lock(mutex);
        now  = bytes;
        most = peak;
    }

  private:
    std::mutex mutex;
    size_t     bytes = 0, peak = 0;
};

struct thread_plan {
    int                         depth = 0;
    std::shared_ptr<plan_scope> scope; // the current one, or the last one, whose numbers can still be read
};

thread_local thread_plan this_thread;

//
// Address space
//

void * reserve(size_t size) {
#if defined(_WIN32)
    return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); // pages come when they are touched
#else
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#    if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#    endif
    void * p = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
#endif
}

void release(void * p, size_t size) {
#if defined(_WIN32)
    GGML_UNUSED(size);
    VirtualFree(p, 0, MEM_RELEASE);
#else
    munmap(p, size);
#endif
}

struct range_list {
    std::shared_mutex           mutex;
    std::map<uintptr_t, size_t> sizes; // by first address
};

range_list & ranges() {
    static range_list * list = new range_list; // never destroyed: buffers may be freed while the process ends
    return *list;
}

//
// Buffers of plan mode
//

struct plan_buffer {
    std::shared_ptr<plan_scope> scope;
    void *                      base;
    bool                        keeps; // what is written is kept; else (weights to be repacked) it is only counted
};

plan_buffer & of(ggml_backend_buffer_t buffer) {
    return *static_cast<plan_buffer *>(buffer->context);
}

void buffer_free(ggml_backend_buffer_t buffer) {
    plan_buffer * b = &of(buffer);
    {
        std::unique_lock<std::shared_mutex> lock(ranges().mutex);
        ranges().sizes.erase(reinterpret_cast<uintptr_t>(b->base));
    }
    release(b->base, buffer->size);
    b->scope->gave(buffer->size);
    delete b;
}

void * buffer_get_base(ggml_backend_buffer_t buffer) {
    return of(buffer).base;
}

void buffer_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    if (of(buffer).keeps) {
        memset(static_cast<char *>(tensor->data) + offset, value, size);
    }
}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    plan_buffer & b = of(buffer);
    b.scope->sets.fetch_add(1, std::memory_order_relaxed);
    b.scope->set_bytes.fetch_add(size, std::memory_order_relaxed);
    if (b.keeps) {
        memcpy(static_cast<char *>(tensor->data) + offset, data, size);
    }
}

void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    plan_buffer & b = of(buffer);
    b.scope->gets.fetch_add(1, std::memory_order_relaxed);
    b.scope->get_bytes.fetch_add(size, std::memory_order_relaxed);
    memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

// Between two host buffers a copy would only move zeros, and touch both: nothing computes here.
bool buffer_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor *) {
    ggml_backend_buffer_t src_buffer = src->view_src ? src->view_src->buffer : src->buffer;
    if (!ggml_backend_buffer_is_host(src_buffer)) {
        return false;
    }
    plan_buffer & b = of(buffer);
    b.scope->copies.fetch_add(1, std::memory_order_relaxed);
    b.scope->copy_bytes.fetch_add(ggml_nbytes(src), std::memory_order_relaxed);
    return true;
}

// llama.cpp clears whole KV caches: pages that were never touched are zero already, and no other value matters here
void buffer_clear(ggml_backend_buffer_t, uint8_t) {}

const ggml_backend_buffer_i BUFFER_IFACE = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ buffer_memset_tensor,
    /* .set_tensor    = */ buffer_set_tensor,
    /* .get_tensor    = */ buffer_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ buffer_cpy_tensor,
    /* .clear         = */ buffer_clear,
    /* .reset         = */ nullptr,
};

ggml_backend_buffer_t alloc_plan_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    void * base = reserve(size);
    if (base == nullptr) {
        GGML_LOG_ERROR("%s: no address space for a host buffer of %zu bytes\n", __func__, size);
        return nullptr;
    }
    {
        std::unique_lock<std::shared_mutex> lock(ranges().mutex);
        ranges().sizes[reinterpret_cast<uintptr_t>(base)] = size;
    }
    this_thread.scope->took(size);
    const bool keeps = buft == ggml_backend_cpu_buffer_type();
    return ggml_backend_buffer_init(buft, BUFFER_IFACE, new plan_buffer { this_thread.scope, base, keeps }, size);
}

//
// Hooks
//

using alloc_fn = ggml_backend_buffer_t (*)(ggml_backend_buffer_type_t buft, size_t size);
using init_fn  = ggml_backend_t (*)(ggml_backend_dev_t dev, const char * params);

// Others hook the same pointers (memory.cpp counts buffers there). Ours has to be the outermost, so that what only
// exists in a plan is not counted as allocated. When another one has been put on top, we go on top of that; then
// `first` is what lay below us the first time, where the chain ends, and `outer` what lies below us now.
template <class F> struct hook {
    F first;
    F outer;
};

struct hook_list {
    std::shared_mutex                                     mutex;
    std::map<ggml_backend_buffer_type_t, hook<alloc_fn>> bufts;
    std::map<ggml_backend_dev_t, hook<init_fn>>          devs;
};

hook_list & hooks() {
    static hook_list * list = new hook_list;
    return *list;
}

// passes a call on; `inside` is set while the chain runs, so that the second visit goes to its end
template <class F, class K, class A> auto pass_on(std::map<K, hook<F>> & table, K key, A argument) {
    static thread_local std::vector<K> inside;
    hook<F> h;
    {
        std::shared_lock<std::shared_mutex> lock(hooks().mutex);
        h = table.at(key);
    }
    if (std::find(inside.begin(), inside.end(), key) != inside.end()) {
        return h.first(key, argument);
    }
    struct visit {
        explicit visit(K key) { inside.push_back(key); }
        ~visit() { inside.pop_back(); } // also when an abort is thrown through here
    } here(key);
    return h.outer(key, argument);
}

ggml_backend_buffer_t hooked_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    if (this_thread.depth > 0) {
        return alloc_plan_buffer(buft, size);
    }
    return pass_on<alloc_fn>(hooks().bufts, buft, size);
}

ggml_status planned_graph_compute(ggml_backend_t, ggml_cgraph * graph) {
    if (this_thread.depth == 0) {
        return GGML_STATUS_SUCCESS; // a backend of a plan that outlived it: still nothing to compute with
    }
    uint64_t n = 0;
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        n += (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_op_is_empty(node->op);
    }
    this_thread.scope->nodes.fetch_add(n, std::memory_order_relaxed);
    this_thread.scope->graph_computes.fetch_add(1, std::memory_order_relaxed);
    return GGML_STATUS_SUCCESS;
}

ggml_backend_t hooked_init_backend(ggml_backend_dev_t dev, const char * params) {
    ggml_backend_t backend = pass_on<init_fn>(hooks().devs, dev, params);
    if (backend != nullptr && this_thread.depth > 0) {
        backend->iface.graph_compute = planned_graph_compute; // the iface is this backend's own copy
    }
    return backend;
}

template <class F, class K> void put(std::map<K, hook<F>> & table, K key, F & pointer, F ours) {
    if (pointer == ours) {
        return;
    }
    auto it = table.find(key);
    if (it == table.end()) {
        table[key] = { pointer, pointer };
    } else {
        it->second.outer = pointer;
    }
    pointer = ours;
}

// on every buffer type in host memory and every device that computes on the host, those registered since included
void put_hooks() {
    std::unique_lock<std::shared_mutex> lock(hooks().mutex);
    put<alloc_fn>(hooks().bufts, ggml_backend_cpu_buffer_type(), ggml_backend_cpu_buffer_type()->iface.alloc_buffer, hooked_alloc_buffer);
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        const enum ggml_backend_dev_type type = ggml_backend_dev_type(dev);
        if (type != GGML_BACKEND_DEVICE_TYPE_CPU && type != GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            continue;
        }
        put<init_fn>(hooks().devs, dev, dev->iface.init_backend, hooked_init_backend);

        auto get_extra_bufts = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_dev_get_extra_bufts"));
        ggml_backend_buffer_type_t * extra = get_extra_bufts ? get_extra_bufts(dev) : nullptr;
        for (; extra != nullptr && *extra != nullptr; extra++) {
            put<alloc_fn>(hooks().bufts, *extra, (*extra)->iface.alloc_buffer, hooked_alloc_buffer);
        }
    }
}

} // namespace

bool pgg::plan_owns_host_address(const void * p) {
    const uintptr_t a = reinterpret_cast<uintptr_t>(p);
    std::shared_lock<std::shared_mutex> lock(ranges().mutex);
    auto it = ranges().sizes.upper_bound(a);
    return it != ranges().sizes.begin() && a - (--it)->first < it->second;
}

void pgg_plan_mode_begin(void) {
    pgg::guarded([] {
        put_hooks();
        if (this_thread.depth == 0) {
            this_thread.scope = std::make_shared<plan_scope>();
            pgg_trace_mute(true); // nothing of it runs
        }
        this_thread.depth++;
        return 0;
    }, 0);
}

void pgg_plan_mode_end(void) {
    if (this_thread.depth > 0 && --this_thread.depth == 0) {
        pgg_trace_mute(false);
    }
}

bool pgg_plan_mode(void) {
    return this_thread.depth > 0;
}

size_t pgg_plan_host_bytes(void) {
    size_t now = 0, peak = 0;
    if (this_thread.scope) {
        this_thread.scope->memory(now, peak);
    }
    return peak;
}

void pgg_host_stats(struct pgg_device_stats * stats) {
    *stats = {};
    if (!this_thread.scope) {
        return;
    }
    plan_scope & s = *this_thread.scope;
    size_t now = 0, peak = 0;
    s.memory(now, peak);
    stats->graph_computes    = s.graph_computes;
    stats->nodes             = s.nodes;
    stats->copies            = s.copies;
    stats->copy_bytes        = s.copy_bytes;
    stats->sets              = s.sets;
    stats->set_bytes         = s.set_bytes;
    stats->gets              = s.gets;
    stats->get_bytes         = s.get_bytes;
    stats->buffer_bytes      = now;
    stats->buffer_bytes_peak = peak;
}
