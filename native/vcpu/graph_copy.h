// A deep copy of a compute graph: what is queued must not change when the caller goes on with its tensors.
#pragma once

#include "ggml-impl.h"

#include <cstring>
#include <vector>

namespace pgg {

// Nodes, their sources, and the use counts of the nodes (kernels are fused by them). Storage is kept for the next graph.
class graph_copy {
public:
    void assign(const ggml_cgraph * from) {
        const int n = from->n_nodes;

        size_t n_max = n;
        for (int i = 0; i < n; i++) {
            for (const ggml_tensor * s : from->nodes[i]->src) {
                n_max += s != nullptr;
            }
        }
        size_t n_slots = 64;
        while (n_slots < 2 * n_max) {
            n_slots *= 2;
        }
        slots.assign(n_slots, slot{});
        originals.clear();
        references.clear();

        for (int i = 0; i < n; i++) {
            index_of(from->nodes[i]);
        }
        // a node that is listed twice is computed twice: on the same copy
        for (int i = 0; i < n; i++) {
            for (const ggml_tensor * s : from->nodes[i]->src) {
                references.push_back(s != nullptr ? (int) index_of(s) : -1);
            }
        }

        tensors.resize(originals.size());
        for (size_t i = 0; i < originals.size(); i++) {
            memcpy(&tensors[i], originals[i], sizeof(ggml_tensor));
        }

        nodes.resize(n);
        keys.resize(2 * n + 1);
        use_counts.resize(2 * n + 1);
        used.assign(ggml_bitset_size(2 * n + 1), 0);

        memset(&graph, 0, sizeof(graph));
        graph.size             = n;
        graph.n_nodes          = n;
        graph.nodes            = nodes.data();
        graph.use_counts       = use_counts.data();
        graph.visited_hash_set = { (size_t) (2 * n + 1), used.data(), keys.data() };
        graph.order            = from->order;
        graph.uid              = from->uid;

        const ggml_hash_set & counted = from->visited_hash_set;
        const int * ref = references.data();
        for (int i = 0; i < n; i++) {
            ggml_tensor * node = &tensors[index_of(from->nodes[i])];
            nodes[i] = node;
            for (ggml_tensor *& s : node->src) {
                s = *ref < 0 ? nullptr : &tensors[*ref];
                ref++;
            }
            int32_t count = 0;
            if (counted.size > 0) {
                const size_t pos = ggml_hash_find(&counted, from->nodes[i]);
                if (pos != GGML_HASHSET_FULL && ggml_bitset_get(counted.used, pos)) {
                    count = from->use_counts[pos];
                }
            }
            use_counts[ggml_hash_find_or_insert(&graph.visited_hash_set, node)] = count;
        }
    }

    ggml_cgraph * get() { return &graph; }

private:
    struct slot {
        const ggml_tensor * key   = nullptr;
        size_t              index = 0;
    };

    size_t index_of(const ggml_tensor * t) {
        const size_t mask = slots.size() - 1;
        size_t i = (size_t) (((uint64_t) (uintptr_t) t >> 4) * 0x9e3779b97f4a7c15ull >> 32) & mask;
        while (slots[i].key != nullptr && slots[i].key != t) {
            i = (i + 1) & mask;
        }
        if (slots[i].key == nullptr) {
            slots[i] = { t, originals.size() };
            originals.push_back(t);
        }
        return slots[i].index;
    }

    std::vector<slot>                slots;
    std::vector<const ggml_tensor *> originals;
    std::vector<int>                 references;
    std::vector<ggml_tensor>         tensors;
    std::vector<ggml_tensor *>       nodes;
    std::vector<ggml_tensor *>       keys;
    std::vector<int32_t>             use_counts;
    std::vector<ggml_bitset_t>       used;
    ggml_cgraph                      graph{};
};

} // namespace pgg
