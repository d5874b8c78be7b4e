// Kernels of the CPU backend inside a guard, with their indices checked beforehand. See ggml_cpu.c.

#include "cpu/ggml_cpu_guard.h"
#include "base/guard.h"

#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

namespace {

// A failed graph between its kernel and its caller. Of fixed size: there may be no memory when it is needed.
struct failure {
    const ggml_cplan * cplan = nullptr; // NULL: free
    int                kind  = PGG_ERROR_NONE;
    char               message[1024];
};

constexpr int MAX_FAILURES = 64; // graphs that fail at the same moment; more have no message

std::mutex       failures_mutex;
failure          failures[MAX_FAILURES];
std::atomic<int> n_failures{0};

void keep(const ggml_cplan * cplan, int kind, const ggml_tensor * node, int node_index, const char * message) {
    std::lock_guard<std::mutex> lock(failures_mutex);
    failure * free = nullptr;
    for (failure & f : failures) {
        if (f.cplan == cplan) {
            return; // other threads fail for the same reason
        }
        if (f.cplan == nullptr && free == nullptr) {
            free = &f;
        }
    }
    if (free == nullptr) {
        return;
    }
    free->cplan = cplan;
    free->kind  = kind;
    snprintf(free->message, sizeof(free->message), "%s '%s' (node %d): %s", ggml_op_desc(node), node->name, node_index, message);
    n_failures.fetch_add(1);
}

bool take(const ggml_cplan * cplan, failure * out) {
    if (n_failures.load() == 0) {
        return false;
    }
    std::lock_guard<std::mutex> lock(failures_mutex);
    for (failure & f : failures) {
        if (f.cplan == cplan) {
            *out = f;
            f.cplan = nullptr;
            n_failures.fetch_sub(1);
            return true;
        }
    }
    return false;
}

[[noreturn]] void out_of_range(const ggml_tensor * ids, int64_t value, int64_t limit, const char * of,
        int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
    char at[96];
    snprintf(at, sizeof(at), "[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "]", i0, i1, i2, i3);
    char text[512];
    snprintf(text, sizeof(text), "'%s' holds %" PRId64 " at %s (ggml's axis order), expected an index of %s from 0 to %" PRId64,
        ids->name, value, at, of, limit - 1);
    throw pgg::error(PGG_ERROR_ARGUMENT, text);
}

template <class T> void check_values(const ggml_tensor * ids, int64_t limit, const char * of) {
    for (int64_t i3 = 0; i3 < ids->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < ids->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < ids->ne[1]; i1++) {
                const char * row = (const char *) ids->data + i1*ids->nb[1] + i2*ids->nb[2] + i3*ids->nb[3];
                for (int64_t i0 = 0; i0 < ids->ne[0]; i0++) {
                    const T value = *(const T *) (row + i0*ids->nb[0]);
                    if (value < 0 || value >= limit) {
                        out_of_range(ids, value, limit, of, i0, i1, i2, i3);
                    }
                }
            }
        }
    }
}

void check(const ggml_tensor * ids, int64_t limit, const char * of) {
    if (ids == nullptr || ids->data == nullptr) {
        return;
    }
    if (ids->type == GGML_TYPE_I32) {
        check_values<int32_t>(ids, limit, of);
    } else if (ids->type == GGML_TYPE_I64) {
        check_values<int64_t>(ids, limit, of);
    }
}

// All ops whose kernels address memory by the contents of a tensor.
void check_indices(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_GET_ROWS:      check(node->src[1], node->src[0]->ne[1], "a row"); break;
        case GGML_OP_GET_ROWS_BACK: check(node->src[1], node->ne[1], "a row"); break;
        case GGML_OP_SET_ROWS:      check(node->src[1], node->ne[1], "a row"); break;
        case GGML_OP_MUL_MAT_ID:    check(node->src[2], node->src[0]->ne[2], "an expert"); break;
        case GGML_OP_ADD_ID:        check(node->src[2], node->src[1]->ne[1], "a row"); break;
        case GGML_OP_SSM_SCAN:      check(node->src[6], node->src[0]->ne[3], "a sequence"); break;
        default: break;
    }
}

[[noreturn]] void no_conversion(const ggml_tensor * node, const ggml_tensor * t) {
    char text[256];
    snprintf(text, sizeof(text), "the CPU has no %s for '%s', which is %s", ggml_op_desc(node), t->name, ggml_type_name(t->type));
    throw pgg::error(PGG_ERROR_ARGUMENT, text);
}

// Kernels that call a function of a format without a look whether the format has one, or that would never end; supports_op says
// yes to them.
void check_types(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_SET_ROWS:
            if (ggml_get_type_traits_cpu(node->type)->from_float == nullptr) {
                no_conversion(node, node);
            }
            break;
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            if (ggml_get_type_traits_cpu(node->src[0]->type)->vec_dot == nullptr) {
                no_conversion(node, node->src[0]);
            }
            break;
        case GGML_OP_FLASH_ATTN_EXT:
            if (ggml_get_type_traits_cpu(node->src[1]->type)->vec_dot == nullptr) {
                no_conversion(node, node->src[1]);
            }
            break;
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            if (node->op_params[1] < 2) { // the kernel, which steps over the rotated elements, would stay at the same place forever
                throw pgg::error(PGG_ERROR_ARGUMENT, std::string("ROPE of '") + node->name + "' rotates " + std::to_string(node->op_params[1]) +
                    " elements of each head (rope.dimension_count of a model): 2 at least are needed");
            }
            break;
        default: break;
    }
}

// A kernel would read or write at address zero.
const ggml_tensor * without_memory(const ggml_cgraph * g) {
    const auto missing = [](const ggml_tensor * t) { return t->data == nullptr && !ggml_is_empty(t); };
    for (int i = 0; i < g->n_nodes; i++) {
        const ggml_tensor * node = g->nodes[i];
        if (!(node->flags & GGML_TENSOR_FLAG_COMPUTE) || ggml_op_is_empty(node->op)) {
            continue;
        }
        if (missing(node)) {
            return node;
        }
        for (const ggml_tensor * s : node->src) {
            if (s != nullptr && missing(s)) {
                return s;
            }
        }
    }
    return nullptr;
}

} // namespace

extern "C" bool pgg_cpu_run(pgg_cpu_kernel_t kernel, ggml_compute_params * params, ggml_tensor * node, ggml_tensor * second,
        int node_index, const ggml_cplan * cplan) {
    pgg::guard_scope scope;
    try {
        if (!ggml_is_empty(node)) {
            check_indices(node);
            check_types(node);
        }
        kernel(params, node, second);
        return true;
#if defined(__GLIBCXX__)
    } catch (abi::__forced_unwind &) {
        throw;
#endif
    } catch (const pgg::error & e) {
        keep(cplan, e.kind, node, node_index, e.what());
    } catch (const std::bad_alloc &) {
        keep(cplan, PGG_ERROR_MEMORY, node, node_index, "the host is out of memory");
    } catch (const std::exception & e) {
        keep(cplan, PGG_ERROR_CPP, node, node_index, e.what());
    } catch (...) {
        keep(cplan, PGG_ERROR_CPP, node, node_index, "a C++ exception of unknown type");
    }
    return false;
}

// Not thrown, but returned: llama.cpp's callers undo what they had begun when the status says that a graph has failed.
extern "C" enum ggml_status ggml_graph_compute(ggml_cgraph * cgraph, ggml_cplan * cplan) {
    if (const ggml_tensor * t = without_memory(cgraph)) {
        char text[256];
        snprintf(text, sizeof(text), "tensor '%s' has no memory: allocate the graph's tensors in a buffer before it is computed", t->name);
        pgg_error_set(PGG_ERROR_ARGUMENT, text);
        return GGML_STATUS_FAILED;
    }
    const enum ggml_status status = pgg_upstream_graph_compute(cgraph, cplan);
    failure f;
    if (!take(cplan, &f)) {
        return status;
    }
    pgg_error_set(f.kind, f.message);
    GGML_LOG_ERROR("%s\n", f.message);
    return GGML_STATUS_FAILED;
}
