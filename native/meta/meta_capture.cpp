// A cut graph as JSON (docs/plan-capture.md), and the words for a refused split.
#include "meta/meta_internal.h"

#include <cstdio>
#include <unordered_set>

namespace pgg {

static std::string quoted(const char * s) {
    std::string out = "\"";
    for (; *s; s++) {
        const unsigned char c = *s;
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (c < 0x20) {
            char buf[8];
            snprintf(buf, sizeof(buf), "\\u%04x", c);
            out += buf;
        } else {
            out += c;
        }
    }
    return out + '"';
}

template <class T> static std::string list(const T * v, size_t n) {
    std::string out = "[";
    for (size_t i = 0; i < n; i++) {
        out += (i ? "," : "") + std::to_string(v[i]);
    }
    return out + "]";
}

static std::string state_json(const split_state & s, size_t n) {
    std::string out = "{\"axis\":" + quoted(ggml_backend_meta_split_axis_name(s.axis));
    if (s.axis >= 0 && s.axis < GGML_MAX_DIMS) {
        out += ",\"segments\":[";
        for (size_t k = 0; k < s.n_segments; k++) {
            out += std::string(k ? "," : "") + "{\"ne\":" + list(s.ne + k*n, n) + ",\"nr\":" + std::to_string(s.nr[k]) + "}";
        }
        out += "]";
    }
    return out + "}";
}

static std::string tensor_json(const ggml_tensor * t, size_t n, const std::unordered_map<const ggml_tensor *, int> & ids) {
    std::string out = "\"name\":" + quoted(t->name) + ",\"op\":" + quoted(ggml_op_desc(t)) + ",\"type\":" + quoted(ggml_type_name(t->type)) +
        ",\"ne\":" + list(t->ne, GGML_MAX_DIMS) + ",\"bytes\":" + std::to_string(ggml_nbytes(t)) + ",\"flags\":" + std::to_string(t->flags);
    std::string src;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (t->src[i]) {
            auto it = ids.find(t->src[i]);
            src += (src.empty() ? "" : ",") + std::to_string(it == ids.end() ? -1 : it->second);
        }
    }
    out += ",\"src\":[" + src + "]";
    const ggml_tensor * first = slice_of(t, 0);
    if (!first || ggml_nelements(t) == 0) {
        return out + ",\"split\":null";
    }
    out += ",\"split\":" + state_json(state_of(t, false), n) + ",\"synced\":" + state_json(state_of(t, true), n);
    std::string slices;
    for (size_t j = 0; j < n; j++) {
        const ggml_tensor * s = slice_of(t, j);
        slices += std::string(j ? "," : "") + "{\"ne\":" + list(s->ne, GGML_MAX_DIMS) + ",\"nb\":" + list(s->nb, GGML_MAX_DIMS) +
            ",\"bytes\":" + std::to_string(ggml_nelements(s) == 0 ? 0 : ggml_nbytes(s)) + ",\"compute\":" +
            ((s->flags & GGML_TENSOR_FLAG_COMPUTE) ? "true" : "false") + "}";
    }
    out += ",\"slices\":[" + slices + "]";
    const placement_ptr p = placement_of(t);
    if (p && p->split() && !p->simple()) {
        std::string at;
        for (size_t j = 0; j < p->at.size(); j++) {
            std::string rs;
            for (const run & r : p->at[j]) {
                rs += (rs.empty() ? "[" : ",[") + std::to_string(r.start) + "," + std::to_string(r.len) + "]";
            }
            at += std::string(j ? "," : "") + "[" + rs + "]";
        }
        out += ",\"runs\":[" + at + "]";
    }
    return out;
}

std::string describe(const device_record & record, const graph_cut & cut) {
    const ggml_cgraph * g = cut.graph;
    const size_t        n = cut.n_devices;
    const int n_nodes = g->n_nodes;

    std::unordered_map<const ggml_tensor *, int> ids;
    std::vector<const ggml_tensor *> leafs;
    for (int i = 0; i < n_nodes; i++) {
        ids[g->nodes[i]] = i;
    }
    for (int i = 0; i < n_nodes; i++) {
        for (int k = 0; k < GGML_MAX_SRC; k++) {
            const ggml_tensor * s = g->nodes[i]->src[k];
            if (s && !ids.count(s)) {
                ids[s] = n_nodes + (int) leafs.size();
                leafs.push_back(s);
            }
        }
    }

    std::string out = "{\"devices\":[";
    for (size_t j = 0; j < n; j++) {
        out += std::string(j ? "," : "") + quoted(ggml_backend_dev_name(record.devices[j]));
    }
    out += "],\"nodes\":[";
    size_t sub = 0;
    for (int i = 0; i < n_nodes; i++) {
        while (sub + 1 < cut.starts.size() && cut.starts[sub + 1] <= i) {
            sub++;
        }
        out += std::string(i ? ",\n" : "\n") + "{\"subgraph\":" + std::to_string(sub) + "," + tensor_json(g->nodes[i], n, ids) + "}";
    }
    out += "],\"leafs\":[";
    for (size_t i = 0; i < leafs.size(); i++) {
        const ggml_tensor * t = leafs[i];
        out += std::string(i ? ",\n" : "\n") + "{\"usage\":" + std::to_string(t->buffer ? (int) ggml_backend_buffer_get_usage(t->buffer) : -1) + "," + tensor_json(t, n, ids) + "}";
    }
    out += "],\"subgraphs\":[";
    size_t n_sub = cut.starts.size();
    if (cut.tail && n_sub > 0 && cut.starts.back() == n_nodes) {
        n_sub--; // the subgraph of our own VIEW
    }
    for (size_t i = 0; i < n_sub; i++) {
        const int stop = i + 1 < cut.starts.size() ? std::min(cut.starts[i + 1], n_nodes) : n_nodes;
        out += std::string(i ? "," : "") + "[" + std::to_string(cut.starts[i]) + "," + std::to_string(stop) + "]";
    }
    out += "],\"allreduces\":[";
    for (size_t i = 0; i + 1 < cut.starts.size(); i++) {
        const int after = cut.starts[i + 1] - 1;
        std::string partial;
        for (int k = cut.starts[i]; k <= after; k++) {
            const ggml_tensor * t = g->nodes[k];
            if (slice_of(t, 0) && ggml_nelements(t) > 0 && state_of(t, false).axis == GGML_BACKEND_SPLIT_AXIS_PARTIAL) {
                partial += (partial.empty() ? "" : ",") + std::to_string(k);
            }
        }
        std::string computes;
        for (size_t j = 0; j < n; j++) {
            computes += std::string(j ? "," : "") + ((slice_of(g->nodes[after], j)->flags & GGML_TENSOR_FLAG_COMPUTE) ? "true" : "false");
        }
        out += std::string(i ? "," : "") + "{\"after\":" + std::to_string(after) + ",\"partial\":[" + partial + "],\"bytes\":" +
            std::to_string(ggml_nbytes(g->nodes[after])) + ",\"computes\":[" + computes + "]}";
    }
    out += "],\"algorithm\":" + std::string(cut.comm ? "\"communicator\"" : "\"butterfly\"");
    out += ",\"reduce_bytes\":" + list(cut.reduce_bytes.data(), cut.reduce_bytes.size()) + ",\"buffers\":[";
    for (size_t i = 0; i < cut.memory.size(); i++) {
        const memory_row & m = cut.memory[i];
        out += std::string(i ? "," : "") + "{\"usage\":" + std::to_string(m.usage) + ",\"fixed\":" + (m.fixed ? "true" : "false") +
            ",\"tensors\":" + std::to_string(m.n_tensors) + ",\"bytes\":" + list(m.bytes.data(), m.bytes.size()) + "}";
    }
    return out + "]}";
}

// upstream's assertions, in words; empty for a reason that has none
static std::string in_words(const ggml_tensor * t, const std::string & reason) {
    if (!t->src[1] && reason.find("ret.axis != GGML_BACKEND_SPLIT_AXIS_UNKNOWN") != std::string::npos) {
        return "ggml has no rule for this op with a split source";
    }
    static const struct { const char * text; const char * words; } TABLE[] = {
        { "split_states_equal(src_ss[0], src_ss[1])", "the devices have other shares of src0 than of src1 along the axis that both are split along" },
        { "split_states_equal(src_ss[0], src_ss[2])", "what is written is not split as the destination is" },
        { "unsupported mul_mat split states", "these two splits cannot be multiplied" },
        { "ret.axis != GGML_BACKEND_SPLIT_AXIS_UNKNOWN", "its sources are split in ways that do not go together" },
        { "src_ss[0].axis != GGML_BACKEND_SPLIT_AXIS_0", "it needs whole rows, and src0 is split along axis 0" },
        { "src_ss[0].axis != GGML_BACKEND_SPLIT_AXIS_1", "rows are addressed by index and cannot be split" },
        { "src_ss[1].axis == GGML_BACKEND_SPLIT_AXIS_MIRRORED", "src1 must be whole on every device" },
        { "src_ss[0].axis == GGML_BACKEND_SPLIT_AXIS_2", "src0 must be split by heads (axis 2)" },
        { "kv_split || kv_mirrored", "K and V must both be split by heads (axis 2), or both be mirrored" },
        { "concat_axis != src_ss", "it is split along the axis that is joined" },
        { "split_state.ne[j] % div == 0", "the shares do not come out in whole indices (a head must not be cut)" },
        { "== sum * tensor->ne[split_state.axis]", "its sources have different shares of the split axis" },
        { "view of permuted tensor not implemented", "a view of a permuted tensor cannot be followed" },
        { "src_ss[0].n_segments == 1", "a tensor in several segments cannot be reshaped so" },
        { "src_ss[i].axis == GGML_BACKEND_SPLIT_AXIS_MIRRORED", "it needs all of its sources whole on every device" },
        { "fatal error", "ggml has no rule for what this makes of the split axis" },
        { "suffix_fallback", "llama.cpp has no rule for it: it looks for a weight that this layer has not got" },
        { "not enough space in the context", "the graph has more tensors than there is room for" },
    };
    for (const auto & row : TABLE) {
        if (reason.find(row.text) != std::string::npos) {
            return row.words;
        }
    }
    return "";
}

static std::string shape(const ggml_tensor * t) {
    std::string out = std::string(ggml_type_name(t->type)) + " [";
    for (int k = 0; k < std::max(ggml_n_dims(t), 1); k++) {
        out += (k ? ", " : "") + std::to_string(t->ne[k]);
    }
    return out + "]";
}

// What would be legal; with the other source's shares where that is all that is missing.
static std::string usual_repair(const ggml_tensor * t, size_t n) {
    const ggml_tensor * a = t->src[0];
    const ggml_tensor * b = t->src[1];
    switch (t->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID: {
            split_state sa, sb;
            try {
                sa = state_of(a, true);
                sb = state_of(b, true);
            } catch (const std::exception &) {
                sa.axis = sb.axis = GGML_BACKEND_SPLIT_AXIS_NONE;
            }
            if (sb.axis == GGML_BACKEND_SPLIT_AXIS_0) {
                return std::string("split '") + a->name + "' as " + notation(sb, n) + ", the shares of '" + b->name + "' (summed by an all-reduce behind it), or mirror what '" + b->name + "' comes from";
            }
            if (sa.axis == GGML_BACKEND_SPLIT_AXIS_0 && sb.axis == GGML_BACKEND_SPLIT_AXIS_MIRRORED) {
                return std::string("split '") + a->name + "' along axis 1, or what '" + b->name + "' comes from so that it is S0 with the same shares, or mirror '" + a->name + "' (M)";
            }
            if (sa.axis == GGML_BACKEND_SPLIT_AXIS_2 && sb.axis == GGML_BACKEND_SPLIT_AXIS_2) {
                return a->ne[2] == b->ne[2] ? "heads (axis 2) of both in the same shares"
                                            : "ggml cannot split a product of grouped heads: FLASH_ATTN_EXT takes K with fewer heads than Q; or mirror both";
            }
            return "src0 S1 with src1 M, or src0 S0 with src1 S0 of the same shares (summed behind it), or src0 M with src1 S1, or both M";
        }
        case GGML_OP_ADD:
        case GGML_OP_SUB:
        case GGML_OP_MUL:
        case GGML_OP_DIV:
            return "both with the same split and shares, or src1 M where it has one index along the split axis";
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
            return "whole rows: any split but along axis 0";
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
            return "shares of the weight in whole heads (rule(..., granularity=<a head's size>)), or mirror it";
        case GGML_OP_SOFT_MAX:
            return t->src[1] ? "ggml cannot split SOFT_MAX with a whole mask: add the mask (ADD) and take SOFT_MAX without one, or use FLASH_ATTN_EXT"
                             : "any split but along axis 0";
        case GGML_OP_DIAG_MASK_INF:
        case GGML_OP_DIAG_MASK_ZERO:
            return "ggml cannot split this op: add a mask (ADD) instead, or use FLASH_ATTN_EXT";
        case GGML_OP_SET_ROWS:
            return "give the cache the split of what is written (its own rule, such as 'cache=M'), or the other way around";
        case GGML_OP_NONE:
            return "shares that are multiples of the type's block along axis 0 and add up to the length of the axis";
        default:
            return "mirror the sources (M), which is always legal";
    }
}

std::string split_message(const ggml_tensor * t, const std::string & reason, const std::string & repair) {
    const device_record * record = t->buffer ? record_of(ggml_backend_buft_get_device(t->buffer->buft)) : nullptr;
    const size_t n = record ? record->devices.size() : 1;
    std::string out = std::string("illegal split at node '") + t->name + "' (" + ggml_op_desc(t) + ", " + shape(t) + "): ";
    const std::string words = in_words(t, reason);
    out += words.empty() ? reason : words;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        const ggml_tensor * s = t->src[i];
        if (!s || s == t) {
            continue;
        }
        out += "; src" + std::to_string(i) + " '" + s->name + "' " + shape(s) + " ";
        try {
            out += s->buffer && ggml_backend_buffer_is_meta(s->buffer) && slice_of(s, 0)
                ? notation(state_of(s, true), n) : "not on the meta device";
        } catch (const std::exception &) {
            out += "?";
        }
    }
    const bool no_rule = reason.find("suffix_fallback") != std::string::npos;
    out += "; legal repair: " + (no_rule ? std::string("a rule of your own for it, such as '") + t->name + "=M'" : repair.empty() ? usual_repair(t, n) : repair);
    return words.empty() ? out : out + "\n  " + reason; // at the end, for those who know it
}

split_error::split_error(const ggml_tensor * t, const std::string & reason, const std::string & repair) :
    error(PGG_ERROR_SPLIT, split_message(t, reason, repair)), reason(reason), repair(repair) {}

std::string violation_json(const ggml_tensor * t, const char * kind, const std::string & reason, const std::string & repair,
        const std::vector<std::vector<std::string>> & roots) {
    const device_record * record = t->buffer ? record_of(ggml_backend_buft_get_device(t->buffer->buft)) : nullptr;
    const size_t n = record ? record->devices.size() : 1;
    const std::string words = in_words(t, reason);
    std::string out = std::string("{\"kind\":") + quoted(kind) + ",\"node\":" + quoted(t->name) + ",\"op\":" + quoted(ggml_op_desc(t)) +
        ",\"type\":" + quoted(ggml_type_name(t->type)) + ",\"ne\":" + list(t->ne, GGML_MAX_DIMS) +
        ",\"reason\":" + quoted((words.empty() ? reason : words).c_str()) + ",\"detail\":" + quoted(words.empty() ? "" : reason.c_str()) +
        ",\"repair\":" + quoted((repair.empty() ? usual_repair(t, n) : repair).c_str()) + ",\"sources\":[";
    bool first = true;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        const ggml_tensor * s = t->src[i];
        if (!s || s == t) {
            continue;
        }
        std::string split = "-"; // not on the meta device
        try {
            if (s->buffer && ggml_backend_buffer_is_meta(s->buffer) && slice_of(s, 0)) {
                split = notation(state_of(s, true), n);
            }
        } catch (const std::exception &) {
            split = "?";
        }
        out += std::string(first ? "" : ",") + "{\"name\":" + quoted(s->name) + ",\"type\":" + quoted(ggml_type_name(s->type)) + ",\"ne\":" +
            list(s->ne, GGML_MAX_DIMS) + ",\"split\":" + quoted(split.c_str()) + ",\"roots\":" +
            (i < (int) roots.size() ? quoted_list({ roots[i].begin(), roots[i].end() }) : std::string("[]")) + "}";
        first = false;
    }
    return out + "]}";
}

std::string quoted_list(const std::set<std::string> & names) {
    std::string out = "[";
    for (const std::string & name : names) {
        out += (out.size() > 1 ? "," : "") + quoted(name.c_str());
    }
    return out + "]";
}

} // namespace pgg
