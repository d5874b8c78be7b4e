// The guard: C++ side of pyggml.h's first section. See guard.cpp.
#pragma once

#include "pyggml.h"

#ifdef __cplusplus

#include <stdexcept>
#include <string>

namespace pgg {

// Thrown by the abort callback inside a guard, and by our own code. Derives from std::exception so that
// llama.cpp's own handlers (which catch std::exception) clean up what they had begun.
struct error : std::runtime_error {
    int kind;
    error(int kind, const std::string & what) : std::runtime_error(what), kind(kind) {}
};

// While one lives, an abort on this thread throws instead of ending the process.
struct guard_scope {
    guard_scope() { pgg_guard_enter(); }
    ~guard_scope() { pgg_guard_leave(); }
    guard_scope(const guard_scope &) = delete;
    guard_scope & operator=(const guard_scope &) = delete;
};

// To be called in a catch block: keeps the current exception as the calling thread's pending error.
PGG_API void keep_current_exception() noexcept;

// Runs f; on an exception keeps the error and returns `failed`.
template <class F, class R> R guarded(F && f, R failed) noexcept {
    guard_scope scope;
    try {
        return f();
    } catch (...) {
        keep_current_exception();
        return failed;
    }
}

} // namespace pgg

#endif
