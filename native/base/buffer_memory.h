// Memory for device buffers, freed by ggml_aligned_free. In memory.cpp.
#pragma once

#include "base/guard.h"

namespace pgg {

// As ggml_aligned_malloc; large pieces begin at a huge page and ask for huge pages. Without them a fresh buffer costs a
// page fault for every 4 KiB, several times as much as what is then copied into it.
PGG_API void * buffer_malloc(size_t size);

} // namespace pgg
