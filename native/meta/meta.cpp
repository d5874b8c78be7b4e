// The meta backend with eyes, hands and a conscience.
//
// Upstream's file is included, not changed: its static functions become reachable, and hooks are set where it hands
// out tables of function pointers. See docs/meta.md for what each hook mends.
#include "meta/meta_internal.h"
#include "base/trace.h"

// The size of a tensor is named once in upstream's file, in the body of its buffer context: a member of ours goes there,
// so that what we know about a buffer lives and dies with it.
#define GGML_TENSOR_SIZE sizeof(ggml_tensor) - sizeof(ggml_tensor::padding); \
    pgg::buffer_extra pgg_extra; \
    static constexpr size_t pgg_unused = sizeof(ggml_tensor::padding)
#define ggml_backend_meta_device                     pgg_upstream_meta_device
#define ggml_backend_meta_alloc_ctx_tensors_from_buft pgg_upstream_meta_alloc_ctx_tensors_from_buft
static ggml_backend_buffer_t buffer_for_sums(ggml_backend_t backend, size_t size, bool needed) {
    ggml_backend_buffer_t made = ggml_backend_alloc_buffer(backend, size);
    if (!made && needed) {
        throw pgg::error(PGG_ERROR_MEMORY, std::string(ggml_backend_name(backend)) + " has no memory for the other devices' summands: " +
            std::to_string(size) + " bytes");
    }
    return made;
}

// Buffers for the butterfly's sums, made in front of a graph ("max_tmp_size"; a communicator does without) or when one is
// missing. Upstream uses what it gets.
#define ggml_backend_alloc_buffer(backend, size) \
    buffer_for_sums(backend, size, backend_ctx->comm_ctx == nullptr || strcmp(#size, "max_tmp_size") != 0)
#include "meta/meta_trace.inc"
#define ggml_backend_tensor_copy_async traced_copy
#define comm_allreduce(comm, tensors)  comm_ctx != nullptr && traced_allreduce(backend_ctx, tensors)
#include "ggml-backend-meta.cpp"
#undef comm_allreduce
#undef ggml_backend_tensor_copy_async
#undef ggml_backend_alloc_buffer
#undef GGML_TENSOR_SIZE
#undef ggml_backend_meta_device
#undef ggml_backend_meta_alloc_ctx_tensors_from_buft

#include <algorithm>
#include <optional>
#include <unordered_set>

using pgg::buffer_extra;
using pgg::device_record;
using pgg::placement_ptr;
using pgg::split_state;

using meta_buffer = ggml_backend_meta_buffer_context;
using lock        = std::lock_guard<std::recursive_mutex>;

// slices of graph tensors live in this container; upstream's rotation between two would drop those of other graphs
static constexpr int    CONTAINER   = 0;
static constexpr size_t MAX_SLICES  = 256*1024;

static std::mutex                                                   records_mutex;
static std::unordered_map<ggml_backend_dev_t, device_record *>       records;
static thread_local ggml_backend_dev_t                              last_made    = nullptr;
static thread_local pgg_split_policy_t                              next_policy  = nullptr;
static thread_local void *                                          next_policy_ud = nullptr;

static meta_buffer * context_of(ggml_backend_buffer_t buffer) { return (meta_buffer *) buffer->context; }
static bool          is_meta(const ggml_tensor * t) { return t && t->buffer && ggml_backend_buffer_is_meta(t->buffer); }
static buffer_extra & extra_of(const ggml_tensor * t) { return context_of(t->buffer)->pgg_extra; }

buffer_extra::~buffer_extra() {
    if (record) {
        lock l(record->mutex);
        record->buffers.erase(this);
        record->changes++;
    }
}

device_record * pgg::record_of(ggml_backend_dev_t dev) {
    if (!ggml_backend_dev_is_meta(dev)) {
        return nullptr;
    }
    std::lock_guard<std::mutex> l(records_mutex);
    auto it = records.find(dev);
    return it == records.end() ? nullptr : it->second;
}

//
// looking
//

static bool is_static(const ggml_tensor * t) {
    const auto & m = context_of(t->buffer)->stc_static.simple_tensors;
    return m.find(t) != m.end();
}

static uint64_t hash_of(const ggml_tensor * t) {
    const uint64_t * p = (const uint64_t *) t; // FNV over words; the struct has no uninitialised tail before `padding`
    uint64_t h = 1469598103934665603ull;
    for (size_t i = 0; i < offsetof(ggml_tensor, padding)/sizeof(uint64_t); i++) {
        h = (h ^ p[i]) * 1099511628211ull;
        h ^= h >> 29;
    }
    return h;
}

static buffer_extra::entry * entry_of(const ggml_tensor * t) {
    auto & es = extra_of(t).entries;
    auto it = es.find(t);
    return it == es.end() ? nullptr : &it->second;
}

static bool is_current(const ggml_tensor * t) {
    const buffer_extra::entry * e = entry_of(t);
    if (!e || (is_static(t) ? false : e->epoch != extra_of(t).record->epoch)) {
        return false;
    }
    return is_static(t) || e->hash == hash_of(t);
}

split_state pgg::state_of(const ggml_tensor * t, bool synced) {
    if (!is_meta(t)) {
        throw pgg::error(PGG_ERROR_ARGUMENT, std::string("tensor '") + t->name + "' is not in a meta buffer");
    }
    return ggml_backend_meta_get_split_state(t, synced);
}

ggml_tensor * pgg::slice_of(const ggml_tensor * t, size_t j) {
    if (!is_meta(t) || j >= context_of(t->buffer)->bufs.size()) {
        return nullptr;
    }
    return ggml_backend_meta_buffer_simple_tensor(t, j);
}

placement_ptr pgg::placement_of(const ggml_tensor * t) {
    if (!is_meta(t)) {
        return nullptr;
    }
    const buffer_extra::entry * e = entry_of(t);
    return e ? e->placed : nullptr;
}

struct placements_of_sources : pgg::source_lookup {
    placement_ptr of(const ggml_tensor * t) const override { return pgg::placement_of(t); }
};

#include "meta/meta_states.inc"
#include "meta/meta_collect.inc"

//
// making slices
//

// The slices of a tensor whose sources are current.
static void infer(ggml_tensor * t) {
    meta_buffer * b = context_of(t->buffer);
    tell_state_of_gdn_view(t);
    tell_state_of_whole(t);
    if (needs_whole_rows(t->op) && tell_state_of_only_row(t->src[0])) {
        make_slices(t->src[0]);
    }
    try {
        ggml_backend_meta_buffer_init_tensor_impl(b->get_simple_tensor_container(t), t);
    } catch (const pgg::error & e) {
        if (e.kind != PGG_ERROR_ABORT) {
            throw;
        }
        throw pgg::split_error(t, std::string("ggml: ") + e.what(), "");
    }
    mend_view_offset(t);
    const bool from_rule = t->view_src == nullptr && ggml_backend_buffer_get_usage(t->buffer) != GGML_BACKEND_BUFFER_USAGE_COMPUTE;
    remember(t, from_rule);
}

static void make_slices(ggml_tensor * t) {
    meta_buffer * b = context_of(t->buffer);
    b->stc_compute_index = b->stc_compute_index_next = CONTAINER;
    auto & container = b->stc_compute[CONTAINER];
    if (!is_static(t) && ggml_used_mem(container.ctxs[0].get()) + 8*ggml_tensor_overhead() > ggml_get_mem_size(container.ctxs[0].get())) {
        forget_graph_slices(t->buffer);
    }
    if (t->view_src) {
        make_current(t->view_src);
    }
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (t->src[i] && t->src[i] != t) {
            make_current(t->src[i]);
        }
    }
    if (!b->pgg_extra.record->collecting) {
        infer(t);
        return;
    }
    b->pgg_extra.record->assumed.erase(t); // another tensor may have been at this address
    try {
        infer(t);
        note_assumed(t);
    } catch (const pgg::split_error & e) {
        assume_whole(t, e);
    }
}

#include "meta/meta_buffers.inc"
#include "meta/meta_single.inc"
#include "meta/meta_graph.inc"
#include "meta/meta_compute.inc"
#include "meta/meta_device.inc"
