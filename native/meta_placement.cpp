#include "meta_placement.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

namespace pgg {

static const char * const ALIBI =
    "ALiBi slopes are taken from the head's index within the slice, so a device that does not hold the first heads uses wrong ones";

static void append(std::vector<run> & rs, int64_t start, int64_t len) {
    if (len <= 0) {
        return;
    }
    if (!rs.empty() && rs.back().start + rs.back().len == start) {
        rs.back().len += len;
    } else {
        rs.push_back({ start, len });
    }
}

static int64_t total(const std::vector<run> & rs) {
    int64_t n = 0;
    for (const run & r : rs) {
        n += r.len;
    }
    return n;
}

// the global index at local position i, or -1
static int64_t at(const std::vector<run> & rs, int64_t i) {
    for (const run & r : rs) {
        if (i < r.len) {
            return r.start + i;
        }
        i -= r.len;
    }
    return -1;
}

bool placement::simple() const {
    if (!split()) {
        return true;
    }
    int64_t next = 0;
    for (const auto & rs : this->at) {
        if (rs.size() > 1 || (rs.size() == 1 && rs[0].start != next)) {
            return false;
        }
        next += total(rs);
    }
    return true;
}


std::string notation(const ggml_backend_meta_split_state & state, size_t n_devices) {
    switch (state.axis) {
        case GGML_BACKEND_SPLIT_AXIS_MIRRORED: return "M";
        case GGML_BACKEND_SPLIT_AXIS_PARTIAL:  return "P";
        case GGML_BACKEND_SPLIT_AXIS_UNKNOWN:  return "?";
        case GGML_BACKEND_SPLIT_AXIS_NONE:     return "-";
        default: break;
    }
    std::string out = "S" + std::to_string((int) state.axis) + " ";
    const bool segmented = state.n_segments > 1 || state.nr[0] > 1;
    out += segmented ? "[" : "";
    for (size_t k = 0; k < state.n_segments; k++) {
        out += k > 0 ? ", " : "";
        for (size_t j = 0; j < n_devices; j++) {
            out += (j > 0 ? ":" : "") + std::to_string(state.ne[k*n_devices + j]);
        }
        if (state.nr[k] > 1) {
            out += " x" + std::to_string(state.nr[k]);
        }
    }
    return out + (segmented ? "]" : "");
}

placement_ptr place_static(const ggml_tensor * t, const ggml_backend_meta_split_state & state, size_t n_devices) {
    auto p = std::make_shared<placement>();
    p->axis = state.axis;
    if (!p->split()) {
        return p;
    }
    p->at.resize(n_devices);
    int64_t pos = 0;
    for (size_t k = 0; k < state.n_segments; k++) {
        for (uint32_t r = 0; r < state.nr[k]; r++) {
            for (size_t j = 0; j < n_devices; j++) {
                append(p->at[j], pos, state.ne[k*n_devices + j]);
                pos += state.ne[k*n_devices + j];
            }
        }
    }
    GGML_UNUSED(t);
    return p;
}

//
// views: which global elements a slice of a view sees
//

// A stretch of the root's memory in which the split axis is addressed as outer, index, inner.
struct region {
    int64_t global_base;
    int64_t unit;                     // bytes (or elements) of one index
    int64_t ne;                       // indices of the whole
    const runs * at;
    int64_t scale;                    // the runs count in steps of this many indices
    std::vector<int64_t> local_base;  // per device
    std::vector<int64_t> local_size;
};

// the global offset of a local one on device j, and how far the mapping stays a shift; -1 when outside
static int64_t to_global(const std::vector<region> & rs, size_t j, int64_t off, int64_t & left) {
    for (const region & r : rs) {
        if (off < r.local_base[j] || off >= r.local_base[j] + r.local_size[j]) {
            continue;
        }
        const int64_t ne_j  = total((*r.at)[j]) * r.scale;
        const int64_t rel   = off - r.local_base[j];
        const int64_t outer = rel / (r.unit * ne_j);
        int64_t       idx   = rel % (r.unit * ne_j);
        const int64_t inner = idx % r.unit;
        idx /= r.unit;
        for (const run & u : (*r.at)[j]) {
            const int64_t len = u.len * r.scale;
            if (idx < len) {
                left = (len - idx) * r.unit - inner;
                return r.global_base + outer * r.unit * r.ne + (u.start * r.scale + idx) * r.unit + inner;
            }
            idx -= len;
        }
    }
    left = 0;
    return -1;
}

struct window {
    int64_t off;
    int64_t ne[GGML_MAX_DIMS];
    int64_t nb[GGML_MAX_DIMS];
};

static placement_ptr map_window(const ggml_tensor * t, const std::vector<region> & regions, const window & whole,
        const std::vector<window> & parts, int axis) {
    auto p = std::make_shared<placement>();
    p->axis = axis;
    p->at.resize(parts.size());
    auto refuse = [&](size_t j) -> refusal {
        return { "device " + std::to_string(j) + " would see other elements than its part along axis " + std::to_string(axis),
            "take the whole split axis in the view, split the tensor in segments that match the view, or mirror it" };
    };
    for (size_t j = 0; j < parts.size(); j++) {
        const window & w = parts[j];
        const int64_t  n = w.ne[axis];
        bool empty = n == 0;
        for (int k = 0; k < GGML_MAX_DIMS; k++) {
            empty = empty || w.ne[k] == 0;
        }
        if (empty) {
            continue;
        }
        for (int64_t l = 0; l < n;) {
            int64_t left = 0;
            const int64_t g = to_global(regions, j, w.off + l*w.nb[axis], left);
            if (g < 0) {
                throw refuse(j);
            }
            const int64_t rel = g - whole.off;
            if (rel < 0 || (whole.nb[axis] != 0 && rel % whole.nb[axis] != 0)) {
                throw refuse(j);
            }
            const int64_t i = whole.nb[axis] != 0 ? rel / whole.nb[axis] : 0;
            int64_t step = 1;
            if (w.nb[axis] == whole.nb[axis] && w.nb[axis] > 0) {
                step = std::min(n - l, 1 + (left - 1)/w.nb[axis]);
            }
            if (i + step > whole.ne[axis]) {
                throw refuse(j);
            }
            append(p->at[j], i, step);
            l += step;
        }
        // the other axes must agree: looked at in the corners and next to the origin, for the ends of every run
        int64_t l = 0;
        for (const run & r : p->at[j]) {
            const int64_t ends[2] = { 0, r.len - 1 };
            for (int64_t e : ends) {
                for (int probe = 0; probe < (1 << GGML_MAX_DIMS) * 2; probe++) {
                    if (probe & (1 << axis)) {
                        continue;
                    }
                    int64_t lo = w.off + (l + e)*w.nb[axis];
                    int64_t go = whole.off + (r.start + e)*whole.nb[axis];
                    bool skip = false;
                    for (int k = 0; k < GGML_MAX_DIMS; k++) {
                        if (k == axis || !(probe & (1 << k))) {
                            continue;
                        }
                        const bool near = probe >= (1 << GGML_MAX_DIMS);
                        if (w.ne[k] < 2) {
                            skip = true;
                            break;
                        }
                        const int64_t i = near ? 1 : w.ne[k] - 1;
                        lo += i*w.nb[k];
                        go += i*whole.nb[k];
                    }
                    int64_t left = 0;
                    if (!skip && to_global(regions, j, lo, left) != go) {
                        throw refuse(j);
                    }
                }
            }
            l += r.len;
        }
    }
    // together the devices must have every index once
    std::vector<run> all;
    for (const auto & rs : p->at) {
        all.insert(all.end(), rs.begin(), rs.end());
    }
    std::sort(all.begin(), all.end(), [](const run & a, const run & b) { return a.start < b.start; });
    int64_t next = 0;
    for (const run & r : all) {
        if (r.start != next) {
            break;
        }
        next += r.len;
    }
    if (next != whole.ne[axis]) {
        throw refusal{ "the devices' parts do not make up the whole along axis " + std::to_string(axis) + " of " + t->name,
            "mirror the tensor that is viewed" };
    }
    return p;
}

static window bytes_window(const ggml_tensor * t, int64_t off) {
    window w{ off, {}, {} };
    for (int k = 0; k < GGML_MAX_DIMS; k++) {
        w.ne[k] = k == 0 ? t->ne[0] / ggml_blck_size(t->type) : t->ne[k];
        w.nb[k] = (int64_t) t->nb[k];
    }
    return w;
}

static window flat_window(const int64_t ne[GGML_MAX_DIMS]) {
    window w{ 0, {}, {} };
    int64_t n = 1;
    for (int k = 0; k < GGML_MAX_DIMS; k++) {
        w.ne[k] = ne[k];
        w.nb[k] = n;
        n *= ne[k];
    }
    return w;
}

static void runs_in_elements(placement & p, int64_t blck) {
    for (auto & rs : p.at) {
        for (run & r : rs) {
            r.start *= blck;
            r.len   *= blck;
        }
    }
}

// a view: the memory of its root, looked at in another way
static placement_ptr place_view(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const placement & root) {
    const ggml_tensor * r = t->view_src;
    const size_t        n = slices.size();
    const int64_t    blck = ggml_blck_size(r->type);

    runs at_blocks = root.at;
    std::vector<region> regions;
    if (root.gdn) {
        const ggml_tensor * v = r->src[2];
        const int64_t S = v->ne[0], H = v->ne[1], n_rows = v->ne[2]*v->ne[3], K = ggml_get_op_params_i32(r, 0)*v->ne[3];
        region scores{ 0, (int64_t) sizeof(float), S*H, &at_blocks, S, {}, {} };
        region states{ S*H*n_rows*(int64_t) sizeof(float), (int64_t) sizeof(float), S*S*H, &at_blocks, S*S, {}, {} };
        for (size_t j = 0; j < n; j++) {
            const int64_t h = total(at_blocks[j]);
            scores.local_base.push_back(0);
            scores.local_size.push_back(S*h*n_rows*(int64_t) sizeof(float));
            states.local_base.push_back(scores.local_size.back());
            states.local_size.push_back(S*S*h*K*(int64_t) sizeof(float));
        }
        regions = { scores, states };
    } else {
        if (root.axis == 0 && blck > 1) {
            for (auto & rs : at_blocks) {
                for (run & u : rs) {
                    u.start /= blck;
                    u.len   /= blck;
                }
            }
        }
        const int64_t ne_axis = root.axis == 0 ? r->ne[0]/blck : r->ne[root.axis];
        region whole{ 0, (int64_t) r->nb[root.axis], ne_axis, &at_blocks, 1, {}, {} };
        for (size_t j = 0; j < n; j++) {
            whole.local_base.push_back(0);
            int64_t outer = 1;
            for (int k = root.axis + 1; k < GGML_MAX_DIMS; k++) {
                outer *= r->ne[k];
            }
            whole.local_size.push_back(whole.unit * total(at_blocks[j]) * outer);
        }
        regions = { whole };
    }
    std::vector<window> parts;
    for (const ggml_tensor * s : slices) {
        parts.push_back(bytes_window(s, (int64_t) s->view_offs));
    }
    auto p = std::const_pointer_cast<placement>(map_window(t, regions, bytes_window(t, (int64_t) t->view_offs), parts, axis));
    if (axis == 0) {
        runs_in_elements(*p, ggml_blck_size(t->type));
    }
    return p;
}

// CONT, CPY: the same elements in the same logical order, in another shape
static placement_ptr place_flat(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const ggml_tensor * src, const placement & from) {
    int64_t unit = 1;
    for (int k = 0; k < from.axis; k++) {
        unit *= src->ne[k];
    }
    region whole{ 0, unit, src->ne[from.axis], &from.at, 1, {}, {} };
    for (size_t j = 0; j < slices.size(); j++) {
        int64_t outer = 1;
        for (int k = from.axis + 1; k < GGML_MAX_DIMS; k++) {
            outer *= src->ne[k];
        }
        whole.local_base.push_back(0);
        whole.local_size.push_back(unit * total(from.at[j]) * outer);
    }
    std::vector<window> parts;
    for (const ggml_tensor * s : slices) {
        parts.push_back(flat_window(s->ne));
    }
    return map_window(t, { whole }, flat_window(t->ne), parts, axis);
}

//
// ops
//

struct checker {
    const ggml_tensor * t;
    int axis; // of the result, as upstream inferred it
    const std::vector<ggml_tensor *> & slices;
    placement_ptr src[GGML_MAX_SRC];

    [[noreturn]] void refuse(const std::string & reason, const std::string & repair) const { throw refusal{ reason, repair }; }

    std::string name(int i) const { return std::string("src") + std::to_string(i) + " (" + t->src[i]->name + ")"; }

    bool split(int i)    const { return src[i] && src[i]->split(); }
    bool mirrored(int i) const { return !src[i] || src[i]->axis == GGML_BACKEND_SPLIT_AXIS_MIRRORED; }

    void need_mirrored(int i, const char * why) const {
        if (t->src[i] && !mirrored(i)) {
            refuse(name(i) + " must be mirrored: " + why, "mirror " + std::string(t->src[i]->name));
        }
    }

    void need_same(int a, int b) const {
        if (!src[a]->same_split(*src[b])) {
            refuse(name(a) + " and " + name(b) + " are split along the same axis, but the devices have other indices of it",
                "give both the same shares and segments");
        }
    }

    placement_ptr take(int i, int to_axis) const {
        auto p = std::make_shared<placement>();
        p->axis = to_axis;
        p->at   = src[i]->at;
        return p;
    }

    // element by element, with sources of one index on an axis broadcast along it
    placement_ptr elementwise(int n_src) const {
        int first = -1;
        for (int i = 0; i < n_src; i++) {
            if (!t->src[i]) {
                continue;
            }
            if (split(i)) {
                if (src[i]->axis != axis || t->src[i]->ne[axis] != t->ne[axis]) {
                    refuse(name(i) + " is split along axis " + std::to_string(src[i]->axis) + " and would have to be repeated along it",
                        "mirror " + std::string(t->src[i]->name));
                }
                if (first >= 0) {
                    need_same(first, i);
                } else {
                    first = i;
                }
            } else if (t->src[i]->ne[axis] != 1) {
                refuse(name(i) + " is whole on every device, but the result is split along axis " + std::to_string(axis),
                    "split " + std::string(t->src[i]->name) + " along axis " + std::to_string(axis) + " with the same shares");
            }
        }
        return take(first, axis);
    }

    placement_ptr rows() const {
        if (src[0]->axis == 0) {
            refuse("the op needs whole rows, and src0 is split along axis 0", "split along another axis, or mirror the source");
        }
        return take(0, axis);
    }

    placement_ptr mul_mat() const {
        const bool id = t->op == GGML_OP_MUL_MAT_ID;
        if (id) {
            need_mirrored(2, "every device needs all expert indices");
        }
        if (split(0) && src[0]->axis == 1 && mirrored(1)) {
            return take(0, 0);
        }
        if (split(1) && src[1]->axis == 1 && mirrored(0)) {
            if (id) {
                refuse("src1 is split along its experts, which the expert indices do not follow", "mirror the activations of MUL_MAT_ID");
            }
            return take(1, 1);
        }
        if (split(0) && split(1) && src[0]->axis == src[1]->axis && src[0]->axis >= 2 && !id) {
            if (t->src[0]->ne[axis] != t->src[1]->ne[axis]) {
                refuse("src0 is repeated along the split axis", "split along another axis, or mirror both");
            }
            need_same(0, 1);
            return take(0, axis);
        }
        refuse("a batch of src0 on one device meets all batches of src1", "split both along axis " + std::to_string(src[0]->axis) + " with the same shares");
    }

    placement_ptr glu() const {
        if (t->src[1]) {
            return elementwise(2);
        }
        if (src[0]->axis != 0) {
            return take(0, axis);
        }
        // the halves of src0 must be halves on every device too: true for weights in two segments
        const int64_t n = t->ne[0];
        auto p = std::make_shared<placement>();
        p->axis = 0;
        p->at.resize(slices.size());
        for (size_t j = 0; j < slices.size(); j++) {
            const auto & rs = src[0]->at[j];
            const int64_t h = total(rs)/2;
            int64_t i = 0;
            while (i < h) {
                const int64_t a = at(rs, i), b = at(rs, h + i);
                if (total(rs) % 2 != 0 || a < 0 || a >= n || b != a + n) {
                    refuse("the two halves of src0 do not stay halves when it is split along axis 0",
                        "split the weight in two segments (gate, up), or along another axis");
                }
                append(p->at[j], a, 1);
                i++;
            }
        }
        return p;
    }

    placement_ptr set_rows() const {
        if (split(2) && split(0)) {
            need_same(0, 2);
        }
        if (axis == 1) {
            refuse("rows are addressed by index and cannot be split", "split along axis 0 or 2");
        }
        if (axis >= 2 && t->src[1]->ne[axis - 1] != 1) {
            refuse("the row indices differ along the split axis, and every device would use the first ones", "split along axis 0");
        }
        return take(2, axis);
    }

    // q head h uses kv head h / (n_q/n_kv); on each device the same must come out of its own counts
    placement_ptr flash_attn() const {
        const float max_bias = ggml_get_op_params_f32(t, 1);
        if (max_bias > 0.0f) {
            refuse(ALIBI, "mirror attention (Q, K, V weights and the KV cache) for models with ALiBi");
        }
        if (src[0]->axis != 2) {
            refuse("Q must be split by heads (axis 2)", "split the Q weight by whole heads");
        }
        if (t->src[3] && t->src[3]->ne[2] != 1) {
            refuse("the mask differs by head and is whole on every device", "use one mask for all heads");
        }
        const int64_t n_q = t->src[0]->ne[2];
        for (int kv = 1; kv <= 2; kv++) {
            const int64_t n_kv = t->src[kv]->ne[2];
            for (size_t j = 0; j < slices.size(); j++) {
                const auto &  q     = src[0]->at[j];
                const int64_t q_j   = total(q);
                const int64_t kv_j  = split(kv) ? total(src[kv]->at[j]) : n_kv;
                if (q_j == 0) {
                    continue;
                }
                if (kv_j == 0 || q_j % kv_j != 0) {
                    refuse("device " + std::to_string(j) + " has " + std::to_string(q_j) + " query heads and " + std::to_string(kv_j) + " KV heads",
                        "shares that give every device whole groups of heads");
                }
                for (int64_t h = 0; h < q_j; h++) {
                    const int64_t local = h / (q_j/kv_j);
                    const int64_t have  = split(kv) ? at(src[kv]->at[j], local) : local;
                    if (have != at(q, h) / (n_q/n_kv)) {
                        refuse("query head " + std::to_string(at(q, h)) + " would meet KV head " + std::to_string(have) + " on device " + std::to_string(j),
                            "shares that give every device whole groups of heads, or KV split like Q");
                    }
                }
            }
        }
        if (t->src[4]) {
            if (!split(4) || src[4]->axis != 0 || src[4]->at != src[0]->at) {
                refuse("the sinks must be split by heads as Q is", "split the sinks along axis 0 with the shares of Q");
            }
        }
        return take(0, 1);
    }

    placement_ptr gated_delta_net() const {
        auto heads = [&](int i) -> const runs & { return src[i]->at; };
        if (src[5]->axis != 2 || src[2]->axis != 1) {
            refuse("V and the state must be split by whole heads", "shares that give every device whole heads");
        }
        for (int i : { 3, 4, 5 }) {
            if (heads(i) != heads(2)) {
                refuse(name(i) + " has other heads than V on the same device", "give V, gate, beta and state the same shares and segments");
            }
        }
        for (int i : { 0, 1 }) {
            for (size_t j = 0; j < slices.size(); j++) {
                const int64_t n_v = total(heads(2)[j]), n_i = total(heads(i)[j]);
                for (int64_t h = 0; h < n_v; h++) {
                    if (n_i == 0 || at(heads(i)[j], h % n_i) != at(heads(2)[j], h) % t->src[i]->ne[1]) {
                        refuse("V head " + std::to_string(at(heads(2)[j], h)) + " would meet a wrong head of " + name(i) + " on device " + std::to_string(j),
                            "split V in segments of as many heads as K has");
                    }
                }
            }
        }
        auto p = std::make_shared<placement>();
        p->axis = 0;
        p->gdn  = true;
        p->at   = heads(2); // in heads
        return p;
    }

    placement_ptr check() const {
        switch (t->op) {
            case GGML_OP_ADD:
            case GGML_OP_SUB:
            case GGML_OP_MUL:
            case GGML_OP_DIV:
                return elementwise(2);
            case GGML_OP_SQR:
            case GGML_OP_SQRT:
            case GGML_OP_LOG:
            case GGML_OP_SIN:
            case GGML_OP_COS:
            case GGML_OP_SCALE:
            case GGML_OP_CLAMP:
            case GGML_OP_LEAKY_RELU:
            case GGML_OP_FILL:
            case GGML_OP_UNARY:
                return elementwise(1);
            case GGML_OP_SILU_BACK:
                return elementwise(2);
            case GGML_OP_ADD_ID:
                need_mirrored(2, "every device needs all indices");
                if (axis != 0 || !split(1) || src[1]->axis != 0) {
                    refuse("only rows split along axis 0 can be added by index", "split both along axis 0 with the same shares");
                }
                need_same(0, 1);
                return take(0, 0);
            case GGML_OP_GLU:
                return glu();
            case GGML_OP_NORM:
            case GGML_OP_RMS_NORM:
            case GGML_OP_L2_NORM:
            case GGML_OP_SUM_ROWS:
            case GGML_OP_CUMSUM:
            case GGML_OP_MEAN:
            case GGML_OP_ARGSORT:
            case GGML_OP_TOP_K:
                return rows();
            case GGML_OP_GROUP_NORM:
                if (axis != 3) {
                    refuse("groups reach over the axes 0 to 2", "mirror the source, or split it along axis 3");
                }
                return take(0, axis);
            case GGML_OP_MUL_MAT:
            case GGML_OP_MUL_MAT_ID:
                return mul_mat();
            case GGML_OP_GET_ROWS:
                need_mirrored(1, "every device needs all row indices");
                if (src[0]->axis != 0) {
                    refuse("rows are addressed by index and cannot be split", "split src0 along axis 0");
                }
                return take(0, 0);
            case GGML_OP_SET_ROWS:
                return set_rows();
            case GGML_OP_ROPE:
            case GGML_OP_ROPE_BACK:
                if (axis != 1 && axis != 3) {
                    refuse(axis == 0 ? "a head's dimensions are rotated in pairs and cannot be split"
                                     : "positions are whole on every device, and axis 2 is split along them", "split by heads (axis 1)");
                }
                need_mirrored(1, "every device needs all positions");
                need_mirrored(2, "every device needs all frequency factors");
                return take(0, axis);
            case GGML_OP_SOFT_MAX:
                if (axis == 0) {
                    refuse("soft_max sums over axis 0, and each device would only sum its part", "split along another axis, or mirror the source");
                }
                if (axis == 2 && ggml_get_op_params_f32(t, 1) > 0.0f) {
                    refuse(ALIBI, "mirror the source");
                }
                return elementwise(2);
            case GGML_OP_FLASH_ATTN_EXT:
                return flash_attn();
            case GGML_OP_SSM_CONV:
                if (!split(0) || !split(1) || src[0]->axis != 1) {
                    refuse("only channels (axis 1 of both sources) can be split", "split the convolution's weight along axis 1, with the shares of its input");
                }
                need_same(0, 1);
                return take(0, 0);
            case GGML_OP_GATED_DELTA_NET:
                return gated_delta_net();
            case GGML_OP_CONCAT:
                if (!split(0) || !split(1) || ggml_get_op_params_i32(t, 0) == axis) {
                    refuse("one source is whole and the other split, or they are split along the axis that is joined",
                        "split both along the same other axis with the same shares");
                }
                need_same(0, 1);
                return take(0, axis);
            case GGML_OP_PAD:
                return take(0, axis);
            case GGML_OP_REPEAT: {
                auto p = std::make_shared<placement>();
                p->axis = axis;
                p->at.resize(slices.size());
                for (size_t j = 0; j < slices.size(); j++) {
                    for (int64_t r = 0; r < t->ne[axis]/t->src[0]->ne[axis]; r++) {
                        for (const run & u : src[0]->at[j]) {
                            append(p->at[j], u.start + r*t->src[0]->ne[axis], u.len);
                        }
                    }
                }
                return p;
            }
            case GGML_OP_CONT:
            case GGML_OP_DUP:
                return place_flat(t, axis, slices, t->src[0], *src[0]);
            case GGML_OP_CPY: {
                placement_ptr p = place_flat(t, axis, slices, t->src[0], *src[0]);
                if (t->src[1] != t && (!split(1) || !p->same_split(*src[1]))) { // a cast names itself as its destination
                    refuse("what is copied does not lie on the devices as the destination does", "give both the same shares and segments");
                }
                return p;
            }
            default:
                refuse(std::string("no split of ") + ggml_op_desc(t) + " is known to be right", "mirror its sources");
        }
    }
};

static bool is_view_op(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

placement_ptr place(const ggml_tensor * t, const ggml_backend_meta_split_state & state, bool partial,
        const std::vector<ggml_tensor *> & slices, const source_lookup & sources) {
    static const placement_ptr MIRRORED = std::make_shared<placement>();
    const bool is_split = state.axis >= 0 && state.axis < GGML_MAX_DIMS;

    if (is_view_op(t) && t->view_src) {
        const placement_ptr root = sources.of(t->view_src);
        if (!is_split || !root) {
            if (root && root->split() && state.axis != GGML_BACKEND_SPLIT_AXIS_UNKNOWN) {
                throw refusal{ "its source is split, the view is not", "mirror the tensor that is viewed" };
            }
            auto p = std::make_shared<placement>();
            p->axis = state.axis;
            return p;
        }
        if (!root->split()) {
            throw refusal{ "its source is whole on every device, the view is split", "mirror the view's other sources" };
        }
        return place_view(t, state.axis, slices, *root);
    }

    checker c{ t, (int) state.axis, slices, {} };
    bool any_split = false;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (t->src[i] && t->src[i] != t) {
            c.src[i] = sources.of(t->src[i]);
            any_split = any_split || c.split(i);
            if (c.src[i] && c.src[i]->axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL && !(t->op == GGML_OP_ADD_ID && i == 1)) {
                throw refusal{ c.name(i) + " is partial by rule and is never summed behind " + ggml_op_desc(t),
                    "only the bias of ADD_ID behind a partial sum can be partial; mirror it" };
            }
            if (c.src[i] && c.src[i]->gdn) {
                throw refusal{ c.name(i) + " holds scores and states behind each other; only views of it can be used", "take a view first" };
            }
        }
    }
    if (t->op == GGML_OP_ADD_ID && c.src[1] && c.src[1]->axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL && !(c.src[0] && c.src[0]->partial)) {
        throw refusal{ "a partial bias is added to a complete sum", "mirror the bias, or split the weight before it along axis 0" };
    }
    if (is_split) {
        return any_split ? c.check() : throw refusal{ "the result is split, its sources are not", "mirror it" };
    }
    if (partial) {
        // MUL_MAT over split rows: both sources must have the same indices of the summed axis
        if (!c.split(0) || !c.split(1)) {
            throw refusal{ "only one source of the sum is split", "split both along axis 0 with the same shares" };
        }
        c.need_same(0, 1);
        if (t->op == GGML_OP_MUL_MAT_ID) {
            c.need_mirrored(2, "every device needs all expert indices");
        }
        auto p = std::make_shared<placement>();
        p->partial = true;
        return p;
    }
    if (any_split && ggml_nelements(t) > 0) {
        throw refusal{ "the result is whole on every device, but a source is split", "mirror the source" };
    }
    return MIRRORED;
}

} // namespace pgg
