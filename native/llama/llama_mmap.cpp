// Takes the place of llama.cpp's llama-mmap.cpp in libllama: the same file, except that in plan mode a mapped file
// is not read ahead. (A plan needs the header of a model of 40 GB; MAP_POPULATE would read all of it.)

#include "pyggml.h"

#include <unistd.h> // defines _POSIX_MAPPED_FILES

#if defined(_POSIX_MAPPED_FILES)

#include <sys/mman.h>

namespace {

void * pgg_mmap(void * addr, size_t length, int protection, int flags, int fd, off_t offset) {
#ifdef MAP_POPULATE
    if (pgg_plan_mode()) {
        flags &= ~MAP_POPULATE;
    }
#endif
    return mmap(addr, length, protection, flags, fd, offset);
}

int pgg_posix_madvise(void * addr, size_t length, int advice) {
    if (advice == POSIX_MADV_WILLNEED && pgg_plan_mode()) {
        return 0;
    }
    return posix_madvise(addr, length, advice);
}

int pgg_madvise(void * addr, size_t length, int advice) {
    if (advice == MADV_WILLNEED && pgg_plan_mode()) {
        return 0;
    }
    return madvise(addr, length, advice);
}

// counts the places below where a macro was used, so that the check at the end sees upstream move them
constexpr int pgg_uses_before = __COUNTER__;
template <int N> constexpr void pgg_use() {}

} // namespace

#define mmap(...)          (pgg_use<__COUNTER__>(), pgg_mmap(__VA_ARGS__))
#define posix_madvise(...) (pgg_use<__COUNTER__>(), pgg_posix_madvise(__VA_ARGS__))
#define madvise(...)       (pgg_use<__COUNTER__>(), pgg_madvise(__VA_ARGS__))

#include "llama-mmap.cpp"

#undef mmap
#undef posix_madvise
#undef madvise

static_assert(__COUNTER__ - pgg_uses_before - 1 >= 3,
    "llama-mmap.cpp no longer calls mmap and (posix_)madvise where it did: see how it reads ahead now, and keep plan mode from it");

#else

#include "llama-mmap.cpp"

#endif
