// What the files of the meta layer share. Only meta.cpp sees upstream's own types.
#pragma once

#include "base/guard.h"
#include "meta/meta_placement.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

struct ggml_backend_meta_buffer_context;

namespace pgg {

using split_state = ggml_backend_meta_split_state;

struct device_record;

// What we add to upstream's buffer context (it is a member of it, see meta.cpp).
struct buffer_extra {
    struct entry {
        uint64_t      hash;      // of the tensor when its slices were made
        uint64_t      epoch;     // of the device when its slices were made
        placement_ptr placed;
        bool          reduced;   // a partial node whose slices were summed in place
        bool          pending;   // it lies between a partial node and its delayed all-reduce: the slices are summands
    };
    device_record *             record = nullptr;
    ggml_backend_buffer_t       buffer = nullptr;
    std::unordered_map<const ggml_tensor *, entry> entries;
    ~buffer_extra();
};

// One for each meta device, never freed: upstream keeps pointers to devices forever. A released record is used
// again for the same devices.
struct device_record {
    ggml_backend_dev_t                  dev = nullptr;
    std::vector<ggml_backend_dev_t>     devices;
    pgg_split_policy_t                  policy    = nullptr;
    void *                              policy_ud = nullptr;
    ggml_backend_meta_get_split_state_t base      = nullptr; // llama.cpp's own policy
    void *                              base_ud   = nullptr;
    bool                                in_use    = false;

    // Held while slices are made or looked up: upstream's caches belong to buffers, which graphs and contexts share.
    std::recursive_mutex  mutex;
    std::atomic<uint64_t> epoch{1};  // raised when slices are thrown away that any graph may still point to
    std::atomic<uint64_t> changes{1}; // raised when any slices are thrown away: cuts made before are void
    std::set<buffer_extra *> buffers;

    bool        capturing = false;
    std::string captured;            // the graphs so far, JSON objects separated by commas

    // While collecting (simulated devices only), a node that is refused is noted and taken for whole on every device.
    bool                                     collecting = false;
    std::string                              violations; // JSON objects separated by commas
    std::set<std::string>                    noted;      // of them: llama.cpp places the same graph several times
    std::set<std::string>                    unjudged;   // nodes refused for what was assumed in front of them
    std::unordered_set<const ggml_tensor *>  assumed;    // whole only because it, or what it comes from, was refused
};

// A refused split, with its parts.
struct split_error : error {
    std::string reason, repair;
    split_error(const ggml_tensor * t, const std::string & reason, const std::string & repair);
};

device_record * record_of(ggml_backend_dev_t meta_dev); // nullptr when it is no meta device

struct memory_row {
    int                       usage; // ggml_backend_buffer_usage
    bool                      fixed; // its tensors were placed once (weights, caches), not by a graph
    std::vector<size_t>       bytes; // per device
    size_t                    n_tensors;
};

// One compute graph as upstream cut it.
struct graph_cut {
    const ggml_cgraph *  graph;
    size_t               n_devices;
    std::vector<int>     starts;       // first node of each subgraph
    bool                 comm;         // the devices' communicator does the all-reduces
    bool                 tail;         // the last subgraph is only our VIEW behind a partial output
    std::vector<size_t>  reduce_bytes; // reduction buffers, per device
    std::vector<memory_row> memory;
};

// What meta.cpp knows about a tensor; throws when the tensor is not of a meta buffer.
split_state          state_of(const ggml_tensor * t, bool synced);
ggml_tensor *        slice_of(const ggml_tensor * t, size_t j);
placement_ptr        placement_of(const ggml_tensor * t);

// meta_capture.cpp
std::string describe(const device_record & record, const graph_cut & cut);
// the message of a refused node: op, node, every source with its split, the reason and a repair
std::string split_message(const ggml_tensor * t, const std::string & reason, const std::string & repair);
// the same in parts, as a JSON object; `roots`: for each source the weights and caches that decided its split
std::string violation_json(const ggml_tensor * t, const char * kind, const std::string & reason, const std::string & repair,
        const std::vector<std::vector<std::string>> & roots);
std::string quoted_list(const std::set<std::string> & names);

} // namespace pgg
