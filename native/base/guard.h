// The guard: C++ side of pyggml.h's first section. See guard.cpp.
#pragma once

#include "pyggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// The counters of a thread, kept together so that a guarded call costs one look-up of thread-local memory.
struct pgg_thread_state {
    int      depth;   // guards that are entered
    int      pending; // enum pgg_error_kind
    unsigned calls;   // outermost guards that were entered so far
    int      python;  // calls from Python that are running: only these return to where an exception can be raised
};

PGG_API struct pgg_thread_state * pgg_thread(void);
// enters a guard for a call from Python; the leaving side decrements depth and python. NULL, and an error, where calls are refused: in a forked child
PGG_API struct pgg_thread_state * pgg_call_enter(void);
// non-zero when Python has something to do after a call: an error of this thread, or log lines
PGG_API int  pgg_call_news(void);

#ifdef __cplusplus
}

#include <stdexcept>
#include <string>

#if defined(__GLIBCXX__)
#    include <cxxabi.h>
#endif

// One type in all libraries, also where symbols are hidden by default.
#if defined(_WIN32)
#    define PGG_TYPE
#else
#    define PGG_TYPE __attribute__((visibility("default")))
#endif

// What follows a try block at the border to C. Python ends its threads by a forced unwind when the interpreter
// ends; that one must pass, or the C++ runtime ends the process.
#if defined(__GLIBCXX__)
#    define PGG_CATCH catch (abi::__forced_unwind &) { throw; } catch (...) { pgg::keep_current_exception(); }
#else
#    define PGG_CATCH catch (...) { pgg::keep_current_exception(); }
#endif

namespace pgg {

// Thrown by the abort callback inside a guard, and by our own code. Derives from std::exception so that
// llama.cpp's own handlers (which catch std::exception) clean up what they had begun.
struct PGG_TYPE error : std::runtime_error {
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
template <class F, class R> R guarded(F && f, R failed) {
    guard_scope scope;
    try {
        return f();
    } PGG_CATCH
    return failed;
}

} // namespace pgg

#endif
