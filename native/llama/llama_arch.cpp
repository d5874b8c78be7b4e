// llama.cpp refuses tensor mode for architectures by name. With rules of one's own many of them compute the right thing:
// a thread may ask for all, and every placement is proven before it runs in any case.
#include "llama-arch.h"
#include "pyggml.h"

#if defined(__GNUC__)
__attribute__((visibility("hidden")))
#endif
bool pgg_upstream_supports_sm_tensor(const llm_arch & arch);

static thread_local bool any_arch = false;

#define llm_arch_supports_sm_tensor pgg_upstream_supports_sm_tensor
#include "llama-arch.cpp"
#undef llm_arch_supports_sm_tensor

bool llm_arch_supports_sm_tensor(const llm_arch & arch) { return any_arch || pgg_upstream_supports_sm_tensor(arch); }

void pgg_llama_allow_any_arch(bool allow) { any_arch = allow; }
