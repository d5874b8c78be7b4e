// Takes the place of ggml-rpc.cpp in ggml-rpc, and includes it so that a server that goes away is an error of the
// calling thread. Upstream ends the process: its dispatcher thread aborts, and callers wait on futures that nobody
// completes. What is changed on the way:
//
// - std::thread, std::promise and std::shared_future are ours in that file (`std` names a namespace that has all of
//   std and these three). The dispatcher's thread runs our loop, which completes every message, with an error once the
//   connection is lost; waiting for a message throws that error, inside a guard.
// - get_dispatcher is ours: it makes a new connection when the last one is lost, so a server that was started
//   again can be used by new backends and buffers. Those of the lost connection keep failing.
// - Freeing a buffer, an event or a backend of a lost connection is silent.

#include "base/guard.h"

// all that ggml-rpc.cpp includes, before names are changed
#include "ggml-rpc.h"
#include "ggml-impl.h"
#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "transport.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cinttypes>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <queue>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#if !defined(_WIN32)
#    include <csignal>
#    include <pthread.h>
#endif

#include "rpc/ggml_rpc_transport.h"

class rpc_dispatcher;

// What is known about a connection besides upstream's dispatcher.
struct pgg_rpc_link {
    std::string       endpoint;
    std::atomic<bool> lost{false};
    std::string       reason; // written before `lost`
};

namespace {

// the connection that this thread is about to make
thread_local std::shared_ptr<pgg_rpc_link> new_link;

void serve(rpc_dispatcher * dispatcher, pgg_rpc_link & link);

[[noreturn]] void fail(const std::string & message) {
    if (pgg_guard_depth() > 0) {
        throw pgg::error(PGG_ERROR_DEVICE, message);
    }
    ggml_abort(__FILE__, __LINE__, "%s", message.c_str());
}

} // namespace

namespace pgg_rpc_std {

using namespace ::std;

template <class T> class shared_future {
public:
    shared_future() = default;
    explicit shared_future(::std::shared_future<T> f) : f(::std::move(f)) {}

    void wait() const {
        ::std::string message;
        try {
            f.get();
            return;
        } catch (const pgg::error & e) {
            message = e.what();
        } catch (const ::std::future_error &) {
            message = "an RPC connection was closed before it had answered";
        }
        if (!pgg_is_freeing()) {
            fail(message);
        }
    }
    shared_future share() const { return *this; }

private:
    ::std::shared_future<T> f;
};

template <class T> class promise {
public:
    shared_future<T> get_future()                       { return shared_future<T>(p.get_future().share()); }
    void             set_value()                        { p.set_value(); }
    void             set_exception(exception_ptr error) { p.set_exception(error); }

private:
    ::std::promise<T> p;
};

class thread {
public:
    thread() = default;
    template <class F> thread(F &&, rpc_dispatcher * dispatcher) : link(::std::move(new_link)) {
        t = ::std::thread([dispatcher, link = link] { serve(dispatcher, *link); });
    }
    bool joinable() const { return t.joinable(); }
    void join()           { t.join(); }

    ::std::shared_ptr<pgg_rpc_link> link;

private:
    ::std::thread t;
};

} // namespace pgg_rpc_std

// definition and calls of get_dispatcher, told apart by the first token of the argument
#define PGG_DISPATCHER_const    dispatcher_for(const std::string & endpoint); \
                                static std::shared_ptr<rpc_dispatcher> upstream_get_dispatcher [[maybe_unused]] (const
#define PGG_DISPATCHER_endpoint dispatcher_for(endpoint
#define PGG_DISPATCHER_buft_ctx dispatcher_for(buft_ctx
#define PGG_DISPATCHER_ctx      dispatcher_for_event(ctx
#define get_dispatcher(a)       PGG_DISPATCHER_##a)

static std::shared_ptr<rpc_dispatcher> dispatcher_for_event(const std::string & endpoint);

#define std     pgg_rpc_std
#define private public
#include "ggml-rpc.cpp"
#undef private
#undef std
#undef get_dispatcher

namespace {

const char * command_name(rpc_cmd cmd) {
    static_assert(RPC_CMD_COUNT == 19, "a command was added: name it here");
    switch (cmd) {
        case RPC_CMD_ALLOC_BUFFER:      return "ALLOC_BUFFER";
        case RPC_CMD_GET_ALIGNMENT:     return "GET_ALIGNMENT";
        case RPC_CMD_GET_MAX_SIZE:      return "GET_MAX_SIZE";
        case RPC_CMD_BUFFER_GET_BASE:   return "BUFFER_GET_BASE";
        case RPC_CMD_FREE_BUFFER:       return "FREE_BUFFER";
        case RPC_CMD_BUFFER_CLEAR:      return "BUFFER_CLEAR";
        case RPC_CMD_SET_TENSOR:        return "SET_TENSOR";
        case RPC_CMD_SET_TENSOR_HASH:   return "SET_TENSOR_HASH";
        case RPC_CMD_GET_TENSOR:        return "GET_TENSOR";
        case RPC_CMD_COPY_TENSOR:       return "COPY_TENSOR";
        case RPC_CMD_GRAPH_COMPUTE:     return "GRAPH_COMPUTE";
        case RPC_CMD_GET_DEVICE_MEMORY: return "GET_DEVICE_MEMORY";
        case RPC_CMD_INIT_TENSOR:       return "INIT_TENSOR";
        case RPC_CMD_GET_ALLOC_SIZE:    return "GET_ALLOC_SIZE";
        case RPC_CMD_HELLO:             return "HELLO";
        case RPC_CMD_DEVICE_COUNT:      return "DEVICE_COUNT";
        case RPC_CMD_GRAPH_RECOMPUTE:   return "GRAPH_RECOMPUTE";
        case RPC_CMD_MEMSET_TENSOR:     return "MEMSET_TENSOR";
        case RPC_CMD_NONE:
        case RPC_CMD_COUNT:             break;
    }
    return "a request";
}

// The dispatcher's thread, in place of rpc_dispatcher::work.
void serve(rpc_dispatcher * dispatcher, pgg_rpc_link & link) {
#if !defined(_WIN32)
    sigset_t all;
    sigfillset(&all); // a write to a server that is gone would be a SIGPIPE; the rest is for the threads of the program
    for (int s : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT }) {
        sigdelset(&all, s);
    }
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
#endif
    const socket_ptr sock = dispatcher->sock; // the destructor resets the member while we may be using it
    rpc_dispatcher::rpc_msg_ptr m;
    while (dispatcher->running && dispatcher->queue.pop(&m)) {
        if (!link.lost && m->cmd != RPC_CMD_NONE) {
            const bool ok = m->output != nullptr
                ? send_rpc_cmd(sock, m->cmd, m->input.get(), m->input_size, m->output, m->output_size)
                : send_rpc_cmd(sock, m->cmd, m->input.get(), m->input_size);
            if (!ok) {
                link.reason = std::string("the connection was lost at ") + command_name(m->cmd);
                link.lost   = true;
                GGML_LOG_ERROR("RPC server %s: %s\n", link.endpoint.c_str(), link.reason.c_str());
            }
        }
        if (link.lost && m->cmd != RPC_CMD_FREE_BUFFER) {
            m->completion.set_exception(std::make_exception_ptr(pgg::error(PGG_ERROR_DEVICE,
                "RPC server " + link.endpoint + ": " + link.reason + "; what it held is lost. Make new backends and buffers "
                "once it runs again")));
        } else {
            m->completion.set_value();
        }
        m.reset();
    }
}

std::mutex & dispatchers_mutex() {
    static std::mutex * m = new std::mutex;
    return *m;
}

// the last connection to each endpoint, lost or not
std::shared_ptr<rpc_dispatcher> last_dispatcher(const std::string & endpoint, const std::shared_ptr<rpc_dispatcher> & set = nullptr) {
    static auto * list = new std::unordered_map<std::string, std::weak_ptr<rpc_dispatcher>>;
    if (set != nullptr) {
        (*list)[endpoint] = set;
    }
    auto it = list->find(endpoint);
    return it != list->end() ? it->second.lock() : nullptr;
}

std::shared_ptr<pgg_rpc_link> make_link(const std::string & endpoint) {
    auto link = std::make_shared<pgg_rpc_link>();
    link->endpoint = endpoint;
    return link;
}

} // namespace

static std::shared_ptr<rpc_dispatcher> dispatcher_for(const std::string & endpoint) {
    std::lock_guard<std::mutex> lock(dispatchers_mutex());
    std::shared_ptr<rpc_dispatcher> dispatcher = last_dispatcher(endpoint);
    if (dispatcher != nullptr && !dispatcher->thread.link->lost) {
        return dispatcher;
    }
    dispatcher = std::make_shared<rpc_dispatcher>();
    new_link = make_link(endpoint);
    try {
        pgg_rpc_handshake handshake; // bounds the time that a server may take to answer
        dispatcher->start(endpoint);
        handshake.done();
    } catch (const pgg::error & e) {
        new_link.reset();
        fail("RPC server " + endpoint + " cannot be reached, or serves another client: " + e.what());
    }
    return last_dispatcher(endpoint, dispatcher);
}

// Events belong to the connection that there is, even if it is lost: freeing one must not make a new connection, which
// could fail. Without any, they belong to one that was never there.
static std::shared_ptr<rpc_dispatcher> dispatcher_for_event(const std::string & endpoint) {
    std::lock_guard<std::mutex> lock(dispatchers_mutex());
    std::shared_ptr<rpc_dispatcher> dispatcher = last_dispatcher(endpoint);
    if (dispatcher != nullptr) {
        return dispatcher;
    }
    dispatcher = std::make_shared<rpc_dispatcher>();
    new_link = make_link(endpoint);
    new_link->reason  = "there is no connection";
    new_link->lost    = true;
    dispatcher->running = true;
    dispatcher->thread  = pgg_rpc_std::thread(rpc_dispatcher_trampoline, dispatcher.get());
    return dispatcher;
}
