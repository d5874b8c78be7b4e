// Where the elements of a split tensor really are: the proof that a split which upstream accepts is also right.
//
// Upstream's split state says how many indices of the split axis each device has, not which ones. A placement
// says which: for every device the runs of global indices along the axis, in the order of its slice. It is
// derived from the slices that upstream made (their shape, strides and offsets), node by node, and every op is
// checked for computing its part from its part. What cannot be shown to be right is refused.
#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pgg {

struct run {
    int64_t start; // global index along the axis
    int64_t len;
    bool operator==(const run & o) const { return start == o.start && len == o.len; }
};

using runs = std::vector<std::vector<run>>; // per device, in local order, neighbours merged

struct placement {
    int  axis    = GGML_BACKEND_SPLIT_AXIS_MIRRORED; // 0..3, MIRRORED, PARTIAL (a static tensor), UNKNOWN (empty)
    bool partial = false; // a computed sum that is not complete until its all-reduce; seen as MIRRORED behind it
    bool gdn     = false; // the output of GATED_DELTA_NET: scores and states behind each other (axis 0, runs of heads)
    runs at;

    bool split()  const { return axis >= 0 && axis < GGML_MAX_DIMS; }
    bool simple() const; // the slices put behind each other give the whole
    bool same_split(const placement & o) const { return axis == o.axis && at == o.at; }
};

using placement_ptr = std::shared_ptr<const placement>;

// Thrown by place(): why a split is refused and what would be legal instead.
struct refusal {
    std::string reason;
    std::string repair;
};

struct source_lookup {
    virtual placement_ptr of(const ggml_tensor * t) const = 0;
    virtual ~source_lookup() = default;
};

// The placement of a tensor that a rule decided (weights, caches): from its segments and repeats.
placement_ptr place_static(const ggml_tensor * t, const ggml_backend_meta_split_state & state, size_t n_devices);

// The placement of a computed tensor or a view, with the checks of its op. `state` is upstream's (synced), `slices`
// are upstream's slices, one a device. Throws refusal.
placement_ptr place(const ggml_tensor * t, const ggml_backend_meta_split_state & state, bool partial,
        const std::vector<ggml_tensor *> & slices, const source_lookup & sources);

// runs: append one (merging neighbours), their total length, the global index at local position i (or -1)
void    append(std::vector<run> & rs, int64_t start, int64_t len);
int64_t total(const std::vector<run> & rs);
int64_t at(const std::vector<run> & rs, int64_t i);

// A view (or reshape, permutation) of a split root: the same memory looked at in another way. Throws refusal.
placement_ptr place_view(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const placement & root);
// The same elements in the same logical order, in another shape (CONT, CPY). Throws refusal.
placement_ptr place_flat(const ggml_tensor * t, int axis, const std::vector<ggml_tensor *> & slices, const ggml_tensor * src, const placement & from);

// "M", "P", "S1", "S1 48:16", "S0 [..]": the notation of rules, tables and errors
std::string notation(const ggml_backend_meta_split_state & state, size_t n_devices);

} // namespace pgg
