// Placements of weights and of views: which global indices a device holds.
#include "meta/meta_placement.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

namespace pgg {

void append(std::vector<run> & rs, int64_t start, int64_t len) {
    if (len <= 0) {
        return;
    }
    if (!rs.empty() && rs.back().start + rs.back().len == start) {
        rs.back().len += len;
    } else {
        rs.push_back({ start, len });
    }
}

int64_t total(const std::vector<run> & rs) {
    int64_t n = 0;
    for (const run & r : rs) {
        n += r.len;
    }
    return n;
}

// the global index at local position i, or -1
int64_t at(const std::vector<run> & rs, int64_t i) {
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
placement_ptr place_view(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const placement & root) {
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
placement_ptr place_flat(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const ggml_tensor * src, const placement & from) {
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

} // namespace pgg
