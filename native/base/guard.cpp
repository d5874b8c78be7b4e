// Failures of native code become an error of the calling thread, and log lines become its reasons.
// See the first section of pyggml.h. Part of ggml-base, so that every library of ours can use it.

#include "base/guard.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <string>

#if defined(__GLIBC__)
#    include <unistd.h>
#endif

#if !defined(_WIN32)
#    include <pthread.h>
#endif

extern "C" void ggml_print_backtrace(void); // of ggml-impl.h, which brings much more

namespace {

// Bounds: a program that never reads them must not grow.
constexpr size_t MAX_TAIL_LINES  = 32;
constexpr size_t MAX_QUEUE_LINES = 8192;
constexpr size_t MAX_LINE_BYTES  = 64 * 1024;

struct tail_line {
    unsigned    call; // the outermost guarded call that logged it
    std::string text;
};

// What a thread keeps besides its counters. On the heap, made when first needed and freed with the thread.
struct thread_extra {
    std::string           message;   // of the pending error
    std::deque<tail_line> tail;
    std::string           tail_text; // owns what pgg_log_tail returned
    std::string           taken;     // owns what pgg_log_take returned
    std::string           partial;   // a log line that has no newline yet
    int                   level = GGML_LOG_LEVEL_INFO; // of the partial line
};

// Plain data: readable at any time, also while a thread ends and after its other thread_locals are gone.
thread_local pgg_thread_state state;
thread_local thread_extra *   extra_ptr  = nullptr;
thread_local bool             extra_gone = false;

struct extra_holder {
    ~extra_holder() {
        delete extra_ptr;
        extra_ptr  = nullptr;
        extra_gone = true;
    }
};

thread_extra * extra() {
    if (extra_ptr == nullptr && !extra_gone) {
        static thread_local extra_holder holder;
        (void) holder;
        extra_ptr = new thread_extra;
    }
    return extra_ptr;
}

struct log_line {
    int         level;
    double      time; // seconds since the epoch
    std::string text;
};

// Immortal: worker threads may log while the process ends.
struct log_queue {
    std::mutex           mutex;
    std::deque<log_line> lines;
    size_t               dropped   = 0;
    pgg_log_sink_t       sink      = nullptr;
    void *               sink_data = nullptr;
};

log_queue & queue() {
    static log_queue * q = new log_queue;
    return *q;
}

std::atomic<int> log_waiting{0};
std::atomic<int> forked{0};

// "/long/path/ggml.c:12: text" -> "ggml.c:12: text": the machine that built the library is nobody's concern
const char * without_directory(const char * message) {
    const char * end = strchr(message, ' ');
    const char * cut = message;
    for (const char * p = message; *p != '\0' && p != end; p++) {
        if (*p == '/' || *p == '\\') {
            cut = p + 1;
        }
    }
    return cut;
}

void on_abort(const char * message) {
    if (state.depth > 0) {
        throw pgg::error(PGG_ERROR_ABORT, without_directory(message));
    }
    fprintf(stderr, "%s\n", message);
    ggml_print_backtrace();
}

void keep_line(int level, std::string text) {
    if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) {
        if (thread_extra * e = extra()) {
            if (e->tail.size() == MAX_TAIL_LINES) {
                e->tail.pop_front();
            }
            e->tail.push_back({ state.calls, text });
        }
    }
    const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();

    pgg_log_sink_t sink = nullptr;
    void *         data = nullptr;
    std::string    copy;
    {
        log_queue & q = queue();
        std::lock_guard<std::mutex> lock(q.mutex);
        sink = q.sink;
        data = q.sink_data;
        if (sink != nullptr) {
            copy = text;
        }
        if (q.lines.size() == MAX_QUEUE_LINES) {
            q.lines.pop_front();
            q.dropped++;
        }
        q.lines.push_back({ level, now, std::move(text) });
    }
    log_waiting.store(1, std::memory_order_release);
    if (sink != nullptr) {
        sink(level, copy.c_str(), data); // without the lock: a sink may log or take
    }
}

// ggml and llama.cpp log pieces of lines; a level of CONT continues what came before.
void on_log(enum ggml_log_level level, const char * text, void *) {
    if (text == nullptr || forked.load(std::memory_order_relaxed)) {
        return;
    }
    try {
        thread_extra * e = extra();
        if (e == nullptr) {
            return;
        }
        if (level != GGML_LOG_LEVEL_CONT) {
            if (!e->partial.empty()) {
                std::string line;
                line.swap(e->partial);
                keep_line(e->level, std::move(line));
            }
            e->level = level == GGML_LOG_LEVEL_NONE ? GGML_LOG_LEVEL_INFO : level;
        }
        const char * p = text;
        while (const char * nl = strchr(p, '\n')) {
            std::string line;
            line.swap(e->partial);
            line.append(p, nl - p);
            p = nl + 1;
            if (!line.empty()) {
                keep_line(e->level, std::move(line));
            }
        }
        e->partial.append(p);
        if (e->partial.size() > MAX_LINE_BYTES) { // dots of a progress bar that never ends
            std::string line;
            line.swap(e->partial);
            keep_line(e->level, std::move(line));
        }
    } catch (const std::bad_alloc &) {
        // a log line is not worth a failure
    }
}

void in_forked_child() {
    forked.store(1, std::memory_order_relaxed);
}

} // namespace

extern "C" {

struct pgg_thread_state * pgg_thread(void) {
    return &state;
}

struct pgg_thread_state * pgg_call_enter(void) {
    if (forked.load(std::memory_order_relaxed)) {
        pgg_error_set(PGG_ERROR_FORK, "this process was forked from one that uses pyggml: its devices, threads and "
            "locks belong to the parent. Start workers with multiprocessing's \"spawn\" or \"forkserver\" method, or "
            "import pyggml only in the child");
        return nullptr;
    }
    if (state.depth++ == 0) {
        state.calls++;
    }
    state.python++;
    return &state;
}

void pgg_guard_install(void) {
    static std::once_flag once;
    std::call_once(once, [] {
        ggml_set_abort_callback(on_abort);
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, in_forked_child);
#endif
    });
}

void pgg_guard_enter(void) {
    if (state.depth++ == 0) {
        state.calls++;
    }
}

void pgg_guard_leave(void) {
    state.depth--;
}

void pgg_exit_at_once(void) {
#if defined(__GLIBC__)
    on_exit([](int status, void *) { fflush(nullptr); _exit(status); }, nullptr); // before all that is registered already
#endif
}

static thread_local bool freeing = false;

void pgg_freeing(bool on)  { freeing = on; }
bool pgg_is_freeing(void) { return freeing; }

int pgg_guard_depth(void) {
    return state.depth;
}

int pgg_guard_python(void) {
    return state.python;
}

int pgg_forked(void) {
    return forked.load(std::memory_order_relaxed);
}

int pgg_error_pending(void) {
    return state.pending;
}

const char * pgg_error_message(void) {
    return state.pending != PGG_ERROR_NONE && extra_ptr != nullptr ? extra_ptr->message.c_str() : "";
}

void pgg_error_clear(void) {
    state.pending = PGG_ERROR_NONE;
    if (extra_ptr != nullptr) {
        extra_ptr->message.clear();
    }
}

void pgg_error_set(int kind, const char * message) {
    if (state.pending != PGG_ERROR_NONE || kind == PGG_ERROR_NONE) {
        return;
    }
    state.pending = kind;
    try {
        if (thread_extra * e = extra()) {
            e->message = message != nullptr ? message : "";
        }
    } catch (const std::bad_alloc &) {
        // the kind alone must do
    }
}

const char * pgg_log_tail(void) {
    if (extra_ptr == nullptr) {
        return "";
    }
    thread_extra & e = *extra_ptr;
    e.tail_text.clear();
    for (const tail_line & line : e.tail) {
        e.tail_text += line.text;
        e.tail_text += '\n';
    }
    return e.tail_text.c_str();
}

const char * pgg_log_reason(void) {
    if (extra_ptr == nullptr) {
        return "";
    }
    thread_extra & e = *extra_ptr;
    e.tail_text.clear();
    for (const tail_line & line : e.tail) {
        if (line.call == state.calls) {
            e.tail_text += line.text;
            e.tail_text += '\n';
        }
    }
    return e.tail_text.c_str();
}

void pgg_log_tail_clear(void) {
    if (extra_ptr != nullptr) {
        extra_ptr->tail.clear();
    }
}

void pgg_log_install(pgg_log_sink_t sink, void * user_data) {
    {
        log_queue & q = queue();
        std::lock_guard<std::mutex> lock(q.mutex);
        q.sink      = sink;
        q.sink_data = user_data;
    }
    ggml_log_set(on_log, nullptr);
}

int pgg_log_waiting(void) {
    return log_waiting.load(std::memory_order_relaxed);
}

const char * pgg_log_take(int min_level) {
    thread_extra * e = extra();
    if (e == nullptr || forked.load(std::memory_order_relaxed)) {
        return "";
    }
    std::deque<log_line> lines;
    size_t dropped = 0;
    {
        log_queue & q = queue();
        std::lock_guard<std::mutex> lock(q.mutex);
        lines.swap(q.lines);
        std::swap(dropped, q.dropped);
        log_waiting.store(0, std::memory_order_release);
    }
    e->taken.clear();
    char head[64];
    if (dropped > 0 && min_level <= GGML_LOG_LEVEL_WARN) {
        snprintf(head, sizeof(head), "%d 0 %zu older lines were dropped\n", GGML_LOG_LEVEL_WARN, dropped);
        e->taken += head;
    }
    for (const log_line & line : lines) {
        if (line.level >= min_level) {
            snprintf(head, sizeof(head), "%d %.6f ", line.level, line.time);
            e->taken += head;
            e->taken += line.text;
            e->taken += '\n';
        }
    }
    return e->taken.c_str();
}

int pgg_call_news(void) {
    return state.pending | log_waiting.load(std::memory_order_relaxed);
}

} // extern "C"

namespace pgg {

void keep_current_exception() noexcept {
    try {
        throw;
    } catch (const error & e) {
        pgg_error_set(e.kind, e.what());
    } catch (const std::bad_alloc &) {
        pgg_error_set(PGG_ERROR_MEMORY, "the host is out of memory");
    } catch (const std::exception & e) {
        pgg_error_set(PGG_ERROR_CPP, e.what());
    } catch (...) {
        pgg_error_set(PGG_ERROR_CPP, "a C++ exception of unknown type");
    }
}

} // namespace pgg

//
// interrupts
//

static std::atomic<ggml_abort_callback> interrupt_callback{nullptr};
static std::atomic<void *>              interrupt_data{nullptr};

void pgg_interrupt_install(ggml_abort_callback callback, void * user_data) {
    interrupt_callback.store(nullptr);
    interrupt_data.store(user_data);
    interrupt_callback.store(callback);
}

bool pgg_interrupt_poll(void) {
    const ggml_abort_callback callback = interrupt_callback.load();
    if (pgg_guard_depth() == 0 || callback == nullptr) {
        return false;
    }
    // once the exception is kept, the answer stays yes until it has been raised
    return pgg_error_pending() == PGG_ERROR_CALLBACK || callback(interrupt_data.load());
}

bool pgg_interrupt_abort(void *) {
    static thread_local std::chrono::steady_clock::time_point next{};
    const auto now = std::chrono::steady_clock::now();
    if (now < next) {
        return false;
    }
    next = now + std::chrono::milliseconds(50);
    return pgg_interrupt_poll();
}
