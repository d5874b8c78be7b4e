// llama.cpp rounds F32 keys and values to F16 for flash attention, whatever the cache was asked to hold. Two runs that
// differ in the last bit of a sum then differ by whole F16 steps, and a comparison measures that instead of the split.
// A context may be told to keep them as they are. Only the casts from F32 to F16 in this file are meant: those two.
#include "base/guard.h"

#include "ggml.h"

static thread_local bool keep_f32 = false;

static ggml_tensor * pgg_cast(ggml_context * ctx, ggml_tensor * t, ggml_type type) {
    return keep_f32 && t->type == GGML_TYPE_F32 && type == GGML_TYPE_F16 ? t : ggml_cast(ctx, t, type);
}

#define ggml_cast pgg_cast
#include "llama-graph.cpp"
#undef ggml_cast

void pgg_llama_keep_f32(bool keep) { keep_f32 = keep; }
