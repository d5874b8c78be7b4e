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

//
// making slices
//

static std::vector<ggml_tensor *> slices_of(const ggml_tensor * t) {
    std::vector<ggml_tensor *> out;
    for (size_t j = 0; j < context_of(t->buffer)->bufs.size(); j++) {
        out.push_back(ggml_backend_meta_buffer_simple_tensor(t, j));
    }
    return out;
}

static void remember(const ggml_tensor * t, bool from_rule) {
    buffer_extra & x = extra_of(t);
    placement_ptr placed;
    const split_state state = ggml_backend_meta_get_split_state(t, true);
    if (from_rule) {
        placed = pgg::place_static(t, state, context_of(t->buffer)->bufs.size());
    } else {
        const bool partial = ggml_nelements(t) > 0 && t->view_src == nullptr &&
            ggml_backend_meta_get_split_state(t, false).axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL;
        try {
            placed = pgg::place(t, state, partial, slices_of(t), placements_of_sources());
        } catch (const pgg::refusal & r) {
            throw pgg::split_error(t, r.reason, r.repair);
        }
    }
    x.entries[t] = { hash_of(t), x.record->epoch, placed, false, false };
}

// Throws the slices of graph tensors away. Those of weights' views may be sources in any graph of the device, so all
// have to be made again; those of a compute buffer belong to the one graph that is being placed anew.
static void forget_graph_slices(ggml_backend_buffer_t buffer) {
    meta_buffer * b = context_of(buffer);
    device_record * record = b->pgg_extra.record;
    record->changes++;
    if (!b->stc_static.simple_tensors.empty()) {
        record->epoch++;
    }
    for (int c = 0; c < 2; c++) {
        for (auto & ctx : b->stc_compute[c].ctxs) {
            ggml_reset(ctx.get());
        }
        b->stc_compute[c].simple_tensors.clear();
    }
    auto & es = b->pgg_extra.entries;
    if (b->stc_static.simple_tensors.empty()) {
        es.clear();
        b->split_state_cache.clear();
    } else {
        for (auto it = es.begin(); it != es.end();) {
            it = b->stc_static.simple_tensors.count(it->first) ? std::next(it) : es.erase(it);
        }
        b->split_state_cache.clear();
    }
}

// Where upstream's inference is wrong and we know better, its cache is told before it asks itself.
static void tell_state(const ggml_tensor * t, const split_state & state) {
    auto & cache = context_of(t->buffer)->split_state_cache;
    for (bool synced : { false, true }) {
        auto & known = cache[{ t, synced }];
        known.first = state;
        memcpy(known.second, t, sizeof(known.second));
    }
}

// The states of GATED_DELTA_NET lie behind its scores, head after head. Upstream takes a view of them for rows of the
// scores: the wrong axis, and an assertion where the number of devices does not divide the head's size.
static void tell_state_of_gdn_view(const ggml_tensor * t) {
    const ggml_tensor * r = t->view_src;
    if (t->op != GGML_OP_VIEW || !r || r->op != GGML_OP_GATED_DELTA_NET || !is_meta(r) || !ggml_is_contiguous(t)) {
        return;
    }
    const ggml_tensor * v = r->src[2];
    const placement_ptr p = pgg::placement_of(r);
    const size_t scores = ggml_nelements(v)*ggml_type_size(r->type);
    if (!p || !p->gdn || t->view_offs < scores || t->ne[0] != v->ne[0] || t->ne[1] != v->ne[0] || t->ne[2] != v->ne[1]) {
        return;
    }
    split_state state;
    memset(&state, 0, sizeof(state));
    state.axis       = GGML_BACKEND_SPLIT_AXIS_2;
    state.n_segments = 1;
    state.nr[0]      = 1;
    for (size_t j = 0; j < p->at.size(); j++) {
        for (const pgg::run & h : p->at[j]) {
            state.ne[j] += h.len;
        }
    }
    tell_state(t, state);
}

// What is made of nothing (ARANGE) is the same on every device; so is a tensor without elements of whole ones (the tokens
// before the only one). Upstream has a state for neither, and refuses what reads them.
static void tell_state_of_whole(const ggml_tensor * t) {
    if (t->op == GGML_OP_NONE || t->view_src == t) {
        return;
    }
    int n_sources = 0;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (t->src[i]) {
            n_sources++;
            if (is_meta(t->src[i]) && ggml_backend_meta_get_split_state(t->src[i], true).axis != GGML_BACKEND_SPLIT_AXIS_MIRRORED) {
                return;
            }
        }
    }
    if (n_sources > 0 && ggml_nelements(t) > 0) {
        return;
    }
    split_state state;
    memset(&state, 0, sizeof(state));
    state.axis       = GGML_BACKEND_SPLIT_AXIS_MIRRORED;
    state.n_segments = 1;
    state.nr[0]      = 1;
    tell_state(t, state);
}

static bool needs_whole_rows(ggml_op op) {
    return op == GGML_OP_NORM || op == GGML_OP_RMS_NORM || op == GGML_OP_L2_NORM || op == GGML_OP_ROPE || op == GGML_OP_SOFT_MAX;
}

// The only head of one token: a vector on one device, reshaped to a row. Upstream leaves it split along axis 0, where it
// is refused as a piece of a row; it moves rows of several tokens to the next axis. Nothing in the vector tells a row
// from columns that one device has all of, so what is computed from it decides. Whether the state was changed.
static bool tell_state_of_only_row(const ggml_tensor * t) {
    if (t->op != GGML_OP_RESHAPE || !is_meta(t) || t->ne[0] == 1 || ggml_nelements(t) != t->ne[0]) {
        return false;
    }
    const split_state from = ggml_backend_meta_get_split_state(t, true);
    if (from.axis != GGML_BACKEND_SPLIT_AXIS_0 || from.n_segments != 1 || from.nr[0] != 1) {
        return false;
    }
    split_state state;
    memset(&state, 0, sizeof(state));
    state.axis       = GGML_BACKEND_SPLIT_AXIS_1;
    state.n_segments = 1;
    state.nr[0]      = 1;
    for (size_t j = 0; j < context_of(t->buffer)->bufs.size(); j++) {
        if (from.ne[j] != 0 && from.ne[j] != t->ne[0]) {
            return false;
        }
        state.ne[j] = from.ne[j] != 0;
    }
    tell_state(t, state);
    return true;
}

static void make_slices(ggml_tensor * t);

static void make_current(ggml_tensor * t) {
    if (is_meta(t) && !is_current(t) && !is_static(t)) {
        make_slices(t);
    }
}

// Where a view begins on each device. Upstream scales the whole offset by the device's share, or none of it, by a rule of
// thumb that fails for a view into the middle of every head (the part of Q that is rotated, say). Only what the offset
// counts along axes outside of the split one is scaled; the proof of the placement judges the outcome in any case.
static void mend_view_offset(ggml_tensor * t) {
    const ggml_tensor * s = t->src[0];
    const int axis = ggml_backend_meta_get_split_state(t, true).axis;
    if (!t->view_src || t->view_offs == 0 || axis < 0 || axis >= GGML_MAX_DIMS || !is_meta(s) || !is_meta(t->view_src)) {
        return;
    }
    const int source_axis = ggml_backend_meta_get_split_state(s, true).axis;
    const size_t base = s->view_src ? s->view_offs : 0;
    if (source_axis < 0 || source_axis >= GGML_MAX_DIMS || t->view_offs < base) {
        return;
    }
    int order[GGML_MAX_DIMS] = { 0, 1, 2, 3 };
    std::sort(order, order + GGML_MAX_DIMS, [&](int a, int b) { return s->nb[a] != s->nb[b] ? s->nb[a] > s->nb[b] : a > b; });
    size_t  rest = t->view_offs - base;
    int64_t at[GGML_MAX_DIMS] = {};
    for (int k : order) {
        if (s->ne[k] > 1) {
            at[k] = rest/s->nb[k];
            rest  = rest%s->nb[k];
        }
    }
    if (at[source_axis] != 0) {
        // within the first index of the view's own split axis, when the source has that axis and an inner one in one
        rest += at[source_axis]*s->nb[source_axis];
        if (rest >= t->nb[axis]) {
            return; // begins at an index of the split axis: whose it is depends on the shares
        }
        at[source_axis] = 0;
    }
    for (size_t j = 0; j < context_of(t->buffer)->bufs.size(); j++) {
        ggml_tensor *       part = ggml_backend_meta_buffer_simple_tensor(t, j);
        const ggml_tensor * from = ggml_backend_meta_buffer_simple_tensor(s, j);
        if (!part || !from || !part->view_src) {
            continue;
        }
        size_t offset = (from->view_src ? from->view_offs : 0) + rest;
        for (int k = 0; k < GGML_MAX_DIMS; k++) {
            offset += at[k]*from->nb[k];
        }
        part->view_offs = offset;
        part->data      = (char *) part->view_src->data + offset;
    }
}

//
// collecting: all that is wrong at once, where nothing is computed
//

static bool is_assumed(const device_record * record, const ggml_tensor * t) { return t && record->assumed.count(t) > 0; }

static bool from_assumed(const device_record * record, const ggml_tensor * t) {
    bool any = is_assumed(record, t->view_src);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        any = any || (t->src[i] != t && is_assumed(record, t->src[i]));
    }
    return any;
}

static bool is_product(const ggml_tensor * t) { return t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID; }

// The weights and caches that decided the split of t: those behind its split sources, or for what is whole the nearest ones.
static std::vector<std::string> roots_of(const ggml_tensor * t) {
    static constexpr size_t MOST = 8, FAR = 200;
    std::vector<std::string> out;
    std::vector<const ggml_tensor *> queue{ t };
    std::unordered_set<const ggml_tensor *> seen{ t };
    auto is_split = [](const ggml_tensor * s) {
        const placement_ptr p = pgg::placement_of(s);
        return p && p->split();
    };
    for (size_t at = 0; at < queue.size() && out.size() < MOST && seen.size() < FAR; at++) {
        const ggml_tensor * s    = queue[at];
        const ggml_tensor * root = s->view_src ? s->view_src : s;
        if (is_meta(root) && is_static(root)) {
            if (std::find(out.begin(), out.end(), root->name) == out.end()) {
                out.push_back(root->name);
            }
            continue;
        }
        bool any_split = false;
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            any_split = any_split || (s->src[i] && s->src[i] != s && is_split(s->src[i]));
        }
        const bool weight_first = is_product(s) && is_meta(s->src[0]) && is_static(s->src[0]->view_src ? s->src[0]->view_src : s->src[0]);
        for (int i = 0; i < (weight_first ? 1 : GGML_MAX_SRC); i++) {
            const ggml_tensor * from = s->src[i];
            if (from && from != s && (!any_split || weight_first || is_split(from)) && seen.insert(from).second) {
                queue.push_back(from);
            }
        }
    }
    return out;
}

static void note_violation(device_record * record, const ggml_tensor * t, const char * kind, const std::string & reason, const std::string & repair) {
    if (!record->noted.insert(std::string(kind) + '\0' + t->name + '\0' + ggml_op_desc(t) + '\0' + reason).second) {
        return;
    }
    std::vector<std::vector<std::string>> roots(GGML_MAX_SRC);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (is_meta(t->src[i]) && t->src[i] != t) {
            roots[i] = roots_of(t->src[i]);
        }
    }
    record->violations += (record->violations.empty() ? "" : ",\n") + pgg::violation_json(t, kind, reason, repair, roots);
}

// What is whole because a source was only assumed to be whole would be otherwise if that source were. A product with a
// weight is as the weight is, and beside another term that is whole a sum is whole.
static void note_assumed(const ggml_tensor * t) {
    device_record * record = extra_of(t).record;
    const int axis = ggml_backend_meta_get_split_state(t, true).axis;
    if (!from_assumed(record, t) || (axis >= 0 && axis < GGML_MAX_DIMS)) {
        return;
    }
    if (is_product(t) && !is_assumed(record, t->src[0])) {
        return;
    }
    if (t->op == GGML_OP_ADD || t->op == GGML_OP_SUB || t->op == GGML_OP_MUL) {
        for (int i = 0; i < 2; i++) {
            if (t->src[i] && !is_assumed(record, t->src[i]) && ggml_are_same_shape(t, t->src[i])) {
                return;
            }
        }
    }
    record->assumed.insert(t);
}

// A refused node: noted, unless its sources were only assumed, and then as if its sources had been gathered in front of it.
static void assume_whole(ggml_tensor * t, const pgg::split_error & e) {
    device_record * record = extra_of(t).record;
    const bool follows = from_assumed(record, t);
    if (follows) {
        record->unjudged.insert(t->name);
    } else {
        note_violation(record, t, "split", e.reason, e.repair);
    }
    split_state whole;
    memset(&whole, 0, sizeof(whole));
    whole.axis       = GGML_BACKEND_SPLIT_AXIS_MIRRORED;
    whole.n_segments = 1;
    whole.nr[0]      = 1;
    tell_state(t, whole);
    meta_buffer * b = context_of(t->buffer);
    try {
        ggml_backend_meta_buffer_init_tensor_impl(b->get_simple_tensor_container(t), t);
    } catch (const pgg::error &) {
        throw pgg::split_error(t, e.reason, e.repair); // one is all that can be said
    }
    extra_of(t).entries[t] = { hash_of(t), record->epoch, std::make_shared<pgg::placement>(), false, false };
    if (!follows || !is_product(t) || is_assumed(record, t->src[0])) {
        record->assumed.insert(t);
    }
}

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

//
// buffers
//

static enum ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * t) {
    lock l(context_of(buffer)->pgg_extra.record->mutex);
    make_slices(t);
    return GGML_STATUS_SUCCESS;
}

static void buffer_reset(ggml_backend_buffer_t buffer) {
    lock l(context_of(buffer)->pgg_extra.record->mutex);
    forget_graph_slices(buffer); // the allocator is about to place a graph anew
    ggml_backend_meta_buffer_reset(buffer);
}

// A tensor's bytes on device j, put into (gather) or taken from (scatter) the whole tensor by its placement.
template <bool GATHER> static void by_placement(const ggml_tensor * t, const pgg::placement & p, size_t j, uint8_t * whole, uint8_t * part) {
    const int64_t blck = p.axis == 0 ? ggml_blck_size(t->type) : 1;
    size_t inner = ggml_type_size(t->type);
    for (int k = 0; k < p.axis; k++) {
        inner *= k == 0 ? t->ne[0]/ggml_blck_size(t->type) : t->ne[k];
    }
    const size_t row = inner * (t->ne[p.axis]/blck);
    int64_t outer = 1;
    for (int k = p.axis + 1; k < GGML_MAX_DIMS; k++) {
        outer *= t->ne[k];
    }
    for (int64_t o = 0; o < outer; o++) {
        for (const pgg::run & r : p.at[j]) {
            const size_t n = inner * (r.len/blck);
            uint8_t * w = whole + o*row + inner*(r.start/blck);
            GATHER ? memcpy(w, part, n) : memcpy(part, w, n);
            part += n;
        }
    }
}

// Reads or writes the whole tensor; the general way, for what upstream has no way for.
static void get_whole(const ggml_tensor * t, uint8_t * out) {
    const split_state   state  = ggml_backend_meta_get_split_state(t, false);
    const placement_ptr placed = pgg::placement_of(t);
    const size_t        n      = context_of(t->buffer)->bufs.size();
    const buffer_extra::entry * e = entry_of(t);
    if (state.axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL || (e && e->pending)) {
        if (t->type != GGML_TYPE_F32) {
            throw pgg::error(PGG_ERROR_SPLIT, std::string("tensor '") + t->name + "' is a partial sum of type " + ggml_type_name(t->type) + "; only f32 can be read");
        }
        std::vector<float> part(ggml_nelements(t));
        float * sum = (float *) out;
        std::fill(sum, sum + part.size(), 0.0f);
        for (size_t j = 0; j < n; j++) {
            const ggml_tensor * s = ggml_backend_meta_buffer_simple_tensor(t, j);
            if (e && e->reduced) {
                ggml_backend_tensor_get(s, out, 0, ggml_nbytes(t));
                return;
            }
            const bool from_rule = t->op == GGML_OP_NONE;
            if (!from_rule && !(s->flags & GGML_TENSOR_FLAG_COMPUTE)) {
                continue; // this device has no share of the sum, its memory holds something else
            }
            ggml_backend_tensor_get(s, part.data(), 0, ggml_nbytes(t));
            for (size_t i = 0; i < part.size(); i++) {
                sum[i] += part[i];
            }
        }
        return;
    }
    if (!placed || !placed->split() || placed->gdn) {
        ggml_backend_meta_buffer_get_tensor(t->buffer, t, out, 0, ggml_nbytes(t));
        return;
    }
    std::vector<uint8_t> part;
    for (size_t j = 0; j < n; j++) {
        const ggml_tensor * s = ggml_backend_meta_buffer_simple_tensor(t, j);
        if (ggml_nelements(s) == 0) {
            continue;
        }
        part.resize(ggml_nbytes(s));
        ggml_backend_tensor_get(s, part.data(), 0, part.size());
        by_placement<true>(t, *placed, j, out, part.data());
    }
}

static void set_whole(ggml_tensor * t, const uint8_t * in) {
    const placement_ptr placed = pgg::placement_of(t);
    if (!placed || !placed->split() || placed->gdn) {
        ggml_backend_meta_buffer_set_tensor(t->buffer, t, in, 0, ggml_nbytes(t));
        return;
    }
    std::vector<uint8_t> part;
    for (size_t j = 0; j < context_of(t->buffer)->bufs.size(); j++) {
        ggml_tensor * s = ggml_backend_meta_buffer_simple_tensor(t, j);
        if (ggml_nelements(s) == 0) {
            continue;
        }
        part.resize(ggml_nbytes(s));
        by_placement<false>(t, *placed, j, const_cast<uint8_t *>(in), part.data());
        ggml_backend_tensor_set(s, part.data(), 0, part.size());
    }
}

// upstream moves whole chunks of contiguous tensors with one or several segments along the axes 0 to 2, in order
static bool upstream_can_move(const ggml_tensor * t, size_t offset, size_t size) {
    const split_state   state  = ggml_backend_meta_get_split_state(t, false);
    const placement_ptr placed = pgg::placement_of(t);
    const buffer_extra::entry * e = entry_of(t);
    if (e && e->pending) {
        return false;
    }
    if (state.axis == GGML_BACKEND_SPLIT_AXIS_MIRRORED) {
        return true;
    }
    if (state.axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL || state.axis > GGML_BACKEND_SPLIT_AXIS_2) {
        return false;
    }
    const bool segmented = state.n_segments != 1 || state.nr[0] != 1;
    if (segmented && (t->ne[3] != 1 || state.axis > 1 || (state.axis == 0 && t->ne[2] != 1))) {
        return false;
    }
    if (!segmented && placed && !placed->simple()) {
        return false;
    }
    if (t->ne[state.axis] == 1) {
        return false; // empty slices have the strides of whole ones, by which upstream would read them
    }
    const size_t chunk = t->nb[state.axis + 1];
    if (chunk == t->nb[state.axis]) {
        return false; // one block or index along the axis: upstream does not see that the slices without it are empty
    }
    return offset % chunk == 0 && size % chunk == 0;
}

static void need_contiguous(const ggml_tensor * t, const char * what) {
    if (!ggml_is_contiguous(t) && ggml_backend_meta_get_split_state(t, false).axis != GGML_BACKEND_SPLIT_AXIS_MIRRORED) {
        throw pgg::error(PGG_ERROR_ARGUMENT, std::string("tensor '") + t->name + "' is split and not contiguous: it cannot be " + what +
            " directly; use ggml_cont on it");
    }
}

static void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    lock l(context_of(buffer)->pgg_extra.record->mutex);
    make_current(const_cast<ggml_tensor *>(t));
    need_contiguous(t, "read");
    if (upstream_can_move(t, offset, size)) {
        ggml_backend_meta_buffer_get_tensor(buffer, t, data, offset, size);
        return;
    }
    std::vector<uint8_t> whole(ggml_nbytes(t));
    get_whole(t, whole.data());
    memcpy(data, whole.data() + offset, size);
}

static void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    lock l(context_of(buffer)->pgg_extra.record->mutex);
    make_current(t);
    need_contiguous(t, "written");
    const bool partial = ggml_backend_meta_get_split_state(t, false).axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL;
    if (partial || upstream_can_move(t, offset, size)) {
        ggml_backend_meta_buffer_set_tensor(buffer, t, data, offset, size);
        return;
    }
    std::vector<uint8_t> whole(ggml_nbytes(t));
    if (offset != 0 || size != whole.size()) {
        get_whole(t, whole.data());
    }
    memcpy(whole.data() + offset, data, size);
    set_whole(t, whole.data());
}

static void adopt(ggml_backend_buffer_t buffer, device_record * record) {
    buffer_extra & x = context_of(buffer)->pgg_extra;
    x.record = record;
    x.buffer = buffer;
    buffer->iface.init_tensor = buffer_init_tensor;
    buffer->iface.reset       = buffer_reset;
    buffer->iface.get_tensor  = buffer_get_tensor;
    buffer->iface.set_tensor  = buffer_set_tensor;
    record->buffers.insert(&x);
}

static device_record * record_of_buft(ggml_backend_buffer_type_t buft) {
    return pgg::record_of(ggml_backend_buft_get_device(buft));
}

static ggml_backend_buffer_t buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    device_record * record = record_of_buft(buft);
    const size_t n = ggml_backend_meta_buft_n_bufts(buft);
    std::vector<ggml_backend_buffer_ptr> owned;
    std::vector<ggml_backend_buffer_t>   bufs;
    size_t max_size = 0;
    for (size_t j = 0; j < n; j++) {
        owned.emplace_back(ggml_backend_buft_alloc_buffer(ggml_backend_meta_buft_simple_buft(buft, j), size));
        if (!owned.back()) {
            GGML_LOG_ERROR("%s: device %s cannot allocate %zu bytes\n", __func__, ggml_backend_dev_name(record->devices[j]), size);
            return nullptr; // what is owned is freed; ggml knows this answer as "out of memory"
        }
        bufs.push_back(owned.back().get());
        max_size = std::max(max_size, ggml_backend_buffer_get_size(bufs.back()));
    }
    const ggml_init_params params = { MAX_SLICES*ggml_tensor_overhead(), nullptr, true };
    const ggml_init_params none   = { 0, nullptr, true };
    ggml_backend_meta_simple_tensor_container stc_static, graph(params, n), spare(none, n);
    meta_buffer * context = new meta_buffer(stc_static, graph, spare, bufs);
    for (auto & o : owned) {
        o.release();
    }
    ggml_backend_buffer_t buffer = ggml_backend_buffer_init(buft, ggml_backend_meta_buffer_iface, context, max_size);
    lock l(record->mutex);
    adopt(buffer, record);
    return buffer;
}

static bool buft_is_host(ggml_backend_buffer_type_t) { return false; } // its addresses are made up, whatever the parts are

extern "C" struct ggml_backend_buffer * ggml_backend_meta_alloc_ctx_tensors_from_buft(struct ggml_context * ctx, ggml_backend_buffer_type_t buft);

struct ggml_backend_buffer * ggml_backend_meta_alloc_ctx_tensors_from_buft(struct ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    device_record * record = record_of_buft(buft);
    lock l(record->mutex);
    ggml_tensor * first = ggml_get_first_tensor(ctx);
    const ggml_tensor * at = nullptr;
    try {
        // asked one by one beforehand, so that an error can name the tensor
        for (ggml_tensor * t = first; t; t = ggml_get_next_tensor(ctx, t)) {
            if (t->buffer || t->data) {
                throw pgg::error(PGG_ERROR_ARGUMENT, std::string("tensor '") + t->name + "' is allocated already");
            }
            if (t->op != GGML_OP_NONE && !t->view_src) {
                // upstream would ask the rules about it and ignore what its sources say
                throw pgg::error(PGG_ERROR_ARGUMENT, std::string("tensor '") + t->name + "' is computed (" + ggml_op_desc(t) +
                    "): on a meta device nodes are placed by a graph allocator (ggml_gallocr or a scheduler), not with the weights");
            }
        }
        ggml_backend_buffer_t buffer = pgg_upstream_meta_alloc_ctx_tensors_from_buft(ctx, buft);
        adopt(buffer, record);
        meta_buffer * b = context_of(buffer);
        // its own containers for views may be small: as many slices as a graph may have
        const ggml_init_params params = { MAX_SLICES*ggml_tensor_overhead(), nullptr, true };
        b->stc_compute[CONTAINER] = ggml_backend_meta_simple_tensor_container(params, b->bufs.size());
        for (ggml_tensor * t = first; t; t = ggml_get_next_tensor(ctx, t)) {
            at = t;
            remember(t, t->view_src == nullptr);
        }
        return buffer;
    } catch (const pgg::error & e) {
        ggml_backend_buffer_t half = first ? first->buffer : nullptr;
        for (ggml_tensor * t = first; t; t = ggml_get_next_tensor(ctx, t)) {
            at = !at && half && t->data == nullptr && t->buffer == half ? t : at;
            if (half && t->buffer == half) {
                t->buffer = nullptr;
                t->data   = nullptr;
            }
        }
        if (half && ggml_backend_buffer_is_meta(half)) {
            ggml_backend_buffer_free(half);
        }
        const std::string what = e.what();
        if (what.find("bufs[i]") != std::string::npos) {
            throw pgg::error(PGG_ERROR_MEMORY, "a device of " + std::string(ggml_backend_dev_name(record->dev)) + " has no memory for its slices of the tensors");
        }
        if (e.kind == PGG_ERROR_ABORT && at) {
            throw pgg::error(PGG_ERROR_SPLIT, pgg::split_message(at, "ggml: " + what, ""));
        }
        throw;
    }
}

#include "meta/meta_compute.inc"
#include "meta/meta_device.inc"
