// C doors to what libllama exports for C++ only (llama-ext.h) or keeps to itself (llama-arch.h, llama-model.h).

#include "base/guard.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"

#include <type_traits>

// llama-ext.h may change at any time: what we rely on is checked here, where the message names it
static_assert(std::is_same<decltype(&llama_graph_reserve), ggml_cgraph * (*)(llama_context *, uint32_t, uint32_t, uint32_t)>::value,
    "llama-ext.h: llama_graph_reserve has changed");
static_assert(std::is_same<llama_memory_breakdown::key_type, ggml_backend_buffer_type_t>::value,
    "llama-ext.h: llama_memory_breakdown is no longer a map by buffer type");
static_assert(std::is_same<decltype(&llm_arch_supports_sm_tensor), bool (*)(const llm_arch &)>::value,
    "llama-arch.h: llm_arch_supports_sm_tensor has changed");

size_t pgg_llama_memory(const struct llama_context * ctx, struct pgg_memory_row * rows, size_t n_rows) {
    return pgg::guarded([&] {
        const llama_memory_breakdown breakdown = llama_get_memory_breakdown(ctx);
        size_t i = 0;
        for (const auto & entry : breakdown) {
            if (i < n_rows) {
                rows[i] = { entry.first, entry.second.model, entry.second.context, entry.second.compute };
            }
            i++;
        }
        return breakdown.size();
    }, size_t(0));
}

struct ggml_cgraph * pgg_llama_graph_reserve(struct llama_context * ctx, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_outputs) {
    return pgg::guarded([&] { return llama_graph_reserve(ctx, n_tokens, n_seqs, n_outputs); }, static_cast<ggml_cgraph *>(nullptr));
}

struct llama_context * pgg_llama_init_without_flash_attn(struct llama_model * model, struct llama_context_params params) {
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return pgg::guarded([&] { return new llama_context(*model, params); }, static_cast<llama_context *>(nullptr));
}

int pgg_llama_n_devices(const struct llama_model * model) {
    return llama_model_n_devices(model);
}

ggml_backend_dev_t pgg_llama_device(const struct llama_model * model, int i) {
    return i >= 0 && i < llama_model_n_devices(model) ? llama_model_get_device(model, i) : nullptr;
}

bool pgg_llama_arch_supports_tensor_split(const char * arch) {
    return pgg::guarded([&] {
        const llm_arch found = llm_arch_from_string(arch);
        return found != LLM_ARCH_UNKNOWN && llm_arch_supports_sm_tensor(found);
    }, false);
}

const struct ggml_tensor * pgg_llama_tensor(const struct llama_model * model, const char * name) {
    return pgg::guarded([&] { return const_cast<const ggml_tensor *>(model->get_tensor(name)); }, static_cast<const ggml_tensor *>(nullptr));
}
