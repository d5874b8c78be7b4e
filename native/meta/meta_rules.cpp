// Placements of what is computed: for every op, that each device computes its part from its parts.
#include "meta/meta_placement.h"

#include "ggml-impl.h"

namespace pgg {

static const char * const ALIBI =
    "ALiBi slopes are taken from the head's index within the slice, so a device that does not hold the first heads uses wrong ones";

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

static placement_ptr place_any(const ggml_tensor * t, const ggml_backend_meta_split_state & state, bool partial,
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
    if (t->op == GGML_OP_MUL_MAT && c.split(0) && ggml_get_op_params_i32(t, 1) == GGML_HINT_SRC0_IS_HADAMARD) {
        throw refusal{ "src0 is said to be a Hadamard matrix: kernels do not read it, but take the one of their slice's size", "mirror " + std::string(t->src[0]->name) };
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

placement_ptr place(const ggml_tensor * t, const ggml_backend_meta_split_state & state, bool partial,
        const std::vector<ggml_tensor *> & slices, const source_lookup & sources) {
    placement_ptr p = place_any(t, state, partial, slices, sources);
    const int64_t blck = ggml_blck_size(t->type);
    if (p->axis == 0 && blck > 1) {
        for (size_t j = 0; j < p->at.size(); j++) {
            for (const run & r : p->at[j]) {
                if (r.start % blck != 0 || r.len % blck != 0) {
                    throw refusal{ "device " + std::to_string(j) + " would have " + std::to_string(r.len) + " elements from " + std::to_string(r.start) +
                        " on, no whole blocks of " + std::to_string(blck) + " (" + ggml_type_name(t->type) + ")",
                        "shares that are multiples of " + std::to_string(blck) + ": rule(..., granularity=" + std::to_string(blck) + ")" };
                }
            }
        }
    }
    return p;
}

} // namespace pgg
