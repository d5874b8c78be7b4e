// Bytes by buffer type, counted where ggml allocates and frees. Takes the place of ggml-backend.cpp in ggml-base,
// and includes it: whether a buffer is one of CUDA's or RPC's is decided by the address of its free_buffer, so that
// pointer must stay what it is, and the one place that calls it is where the end of a buffer can be seen. The places that
// call backends are where traces look on (trace.h).

#include "base/buffer_memory.h"
#include "base/guard.h"
#include "base/trace.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <mutex>
#include <unordered_map>

#if defined(__linux__)
#    include <cstdlib>
#    include <sys/mman.h>
#endif

void * pgg::buffer_malloc(size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t HUGE = 2u << 20;
    // smaller pieces may come from the heap, which outlives them
    if (size > 16*HUGE) {
        void * data = nullptr;
        if (posix_memalign(&data, HUGE, size) != 0) {
            return nullptr;
        }
        madvise(data, size & ~(HUGE - 1), MADV_HUGEPAGE); // advice: nothing is lost when it is refused
        return data;
    }
#endif
    return ggml_aligned_malloc(size);
}

namespace {

struct watched {
    ggml_backend_buffer_t (*alloc)(ggml_backend_buffer_type_t buft, size_t size);
    size_t now   = 0;
    size_t total = 0;
};

struct live {
    watched * owner;
    size_t    size;
};

// Immortal: buffers may be freed while the process ends.
struct ledger {
    std::mutex                                              mutex;
    std::unordered_map<ggml_backend_buffer_type_t, watched> types; // nodes stay where they are
    std::unordered_map<ggml_backend_buffer_t, live>         buffers;
};

ledger & books() {
    static ledger * l = new ledger;
    return *l;
}

ggml_backend_buffer_t counted_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ledger & l = books();
    watched * w = nullptr;
    {
        std::lock_guard<std::mutex> lock(l.mutex);
        w = &l.types.at(buft);
    }
    ggml_backend_buffer_t buffer = w->alloc(buft, size);
    if (buffer != nullptr) {
        std::lock_guard<std::mutex> lock(l.mutex);
        l.buffers[buffer] = { w, buffer->size };
        w->now   += buffer->size;
        w->total += buffer->size;
    }
    return buffer;
}

ggml_backend_buffer_t counted_free(ggml_backend_buffer_t buffer) {
    ledger & l = books();
    std::lock_guard<std::mutex> lock(l.mutex);
    auto it = l.buffers.find(buffer);
    if (it != l.buffers.end()) {
        it->second.owner->now -= it->second.size;
        l.buffers.erase(it);
    }
    return buffer;
}

} // namespace

// ggml_backend_buffer_free is the only caller of free_buffer(buffer); names without a call are left alone.
#define free_buffer(buffer) free_buffer(counted_free(buffer))
#define ggml_aligned_malloc pgg::buffer_malloc // only the CPU's buffers call it here
// Every call of a backend by way of ggml, for traces: the first argument lives until the call returns. Each of these is
// called in one place; names without a call are left alone here, too.
#define graph_compute(b, g)                          graph_compute(pgg::trace::computing(b, g), g)
#define synchronize(b)                               synchronize(pgg::trace::request(b, PGG_TRACE_SYNC))
#define set_tensor(b, t, data, at, n)                set_tensor(pgg::trace::access(b, PGG_TRACE_SET, n), t, data, at, n)
#define get_tensor(b, t, data, at, n)                get_tensor(pgg::trace::access(b, PGG_TRACE_GET, n), t, data, at, n)
#define set_tensor_2d(b, t, data, at, n, k, ...)     set_tensor_2d(pgg::trace::access(b, PGG_TRACE_SET, (n)*(k)), t, data, at, n, k, __VA_ARGS__)
#define get_tensor_2d(b, t, data, at, n, k, ...)     get_tensor_2d(pgg::trace::access(b, PGG_TRACE_GET, (n)*(k)), t, data, at, n, k, __VA_ARGS__)
#define set_tensor_async(b, t, data, at, n)          set_tensor_async(pgg::trace::request(b, PGG_TRACE_SET, n), t, data, at, n)
#define get_tensor_async(b, t, data, at, n)          get_tensor_async(pgg::trace::request(b, PGG_TRACE_GET, n), t, data, at, n)
#define set_tensor_2d_async(b, t, data, at, n, k, ...) \
    set_tensor_2d_async(pgg::trace::request(b, PGG_TRACE_SET, (n)*(k)), t, data, at, n, k, __VA_ARGS__)
#define get_tensor_2d_async(b, t, data, at, n, k, ...) \
    get_tensor_2d_async(pgg::trace::request(b, PGG_TRACE_GET, (n)*(k)), t, data, at, n, k, __VA_ARGS__)
#include "ggml-backend.cpp"
#undef get_tensor_2d_async
#undef set_tensor_2d_async
#undef get_tensor_async
#undef set_tensor_async
#undef get_tensor_2d
#undef set_tensor_2d
#undef get_tensor
#undef set_tensor
#undef synchronize
#undef graph_compute
#undef ggml_aligned_malloc
#undef free_buffer

extern "C" {

void pgg_buft_watch(ggml_backend_buffer_type_t buft) {
    if (buft == nullptr) {
        pgg_error_set(PGG_ERROR_ARGUMENT, "pgg_buft_watch: the buffer type is NULL");
        return;
    }
    ledger & l = books();
    std::lock_guard<std::mutex> lock(l.mutex);
    if (l.types.count(buft) == 0) {
        l.types[buft].alloc = buft->iface.alloc_buffer;
        buft->iface.alloc_buffer = counted_alloc;
    }
}

size_t pgg_buft_allocated(ggml_backend_buffer_type_t buft) {
    ledger & l = books();
    std::lock_guard<std::mutex> lock(l.mutex);
    auto it = l.types.find(buft);
    return it != l.types.end() ? it->second.now : 0;
}

size_t pgg_buft_allocated_total(ggml_backend_buffer_type_t buft) {
    ledger & l = books();
    std::lock_guard<std::mutex> lock(l.mutex);
    auto it = l.types.find(buft);
    return it != l.types.end() ? it->second.total : 0;
}

} // extern "C"
