// An in-order queue with a thread of its own, as a virtual CPU device has one.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
#    include <immintrin.h>
#endif
#if !defined(_WIN32)
#    include <csignal>
#    include <pthread.h>
#endif

namespace pgg {

inline void cpu_relax() {
#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

// A number that only grows. Who waits for it spins for an instant, then lets other threads run for a while (there may
// be more devices than cores), then sleeps.
class rising {
public:
    uint64_t get() const { return value.load(std::memory_order_acquire); }

    void add(uint64_t n = 1) {
        value.fetch_add(n); // sequentially consistent, as is what a sleeper does: one of the two sees the other
        if (sleepers.load() > 0) {
            { std::lock_guard<std::mutex> lock(mutex); }
            cv.notify_all();
        }
    }

    void wait(uint64_t at_least) { wait_until(at_least, nullptr); }

    // false when the deadline passed first
    bool wait_until(uint64_t at_least, const std::chrono::steady_clock::time_point * deadline) {
        for (int i = 0; i < 128; i++) {
            if (get() >= at_least) {
                return true;
            }
            cpu_relax();
        }
        const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
        do {
            for (int i = 0; i < 16; i++) {
                if (get() >= at_least) {
                    return true;
                }
                std::this_thread::yield();
            }
        } while (std::chrono::steady_clock::now() < patience);

        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        const auto reached = [&] { return value.load() >= at_least; };
        bool ok = true;
        if (deadline != nullptr) {
            ok = cv.wait_until(lock, *deadline, reached);
        } else {
            cv.wait(lock, reached);
        }
        sleepers.fetch_sub(1);
        return ok;
    }

private:
    std::atomic<uint64_t>   value{0};
    std::atomic<int>        sleepers{0};
    std::mutex              mutex;
    std::condition_variable cv;
};

struct work_item {
    work_item * next = nullptr;
    virtual ~work_item() = default;
    virtual void run() = 0; // keeps its own exceptions
};

template <class F> struct work_item_of final : work_item {
    F f;
    explicit work_item_of(F && f) : f(std::move(f)) {}
    void run() override { f(); }
};

template <class F> std::unique_ptr<work_item> make_work(F && f) {
    return std::make_unique<work_item_of<std::decay_t<F>>>(std::forward<F>(f));
}

// Immortal: its thread may outlive everything else in the process.
class work_queue {
public:
    explicit work_queue(std::string name) : name(std::move(name)) {}

    // starts the thread when it is not there yet; throws std::system_error
    void start() {
        std::lock_guard<std::mutex> lock(mutex);
        if (running) {
            return;
        }
#if !defined(_WIN32)
        // signals are for the threads of the program
        sigset_t block, before;
        sigfillset(&block);
        for (int s : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS }) {
            sigdelset(&block, s);
        }
        pthread_sigmask(SIG_BLOCK, &block, &before);
        struct restore {
            sigset_t & mask;
            ~restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
        } restore{ before };
#endif
        thread  = std::thread([this] { work(); });
        id      = thread.get_id();
        running = true;
    }

    // Takes the item over, and cannot fail. Returns a ticket to wait for.
    uint64_t push(std::unique_ptr<work_item> item) noexcept {
        std::lock_guard<std::mutex> lock(mutex);
        *tail = item.get();
        tail  = &item.release()->next;
        const uint64_t ticket = ++n_tickets;
        pushed.add();
        return ticket;
    }

    // While it takes long, `poll` is called every 50 ms.
    template <class F> void wait(uint64_t ticket, F && poll) {
        while (done.get() < ticket && !on_its_thread()) {
            const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
            if (done.wait_until(ticket, &deadline)) {
                return;
            }
            poll();
        }
    }
    void wait(uint64_t ticket) {
        if (done.get() < ticket && !on_its_thread()) {
            done.wait(ticket);
        }
    }
    void wait_idle() { wait(pushed.get()); }

    // waits no longer than until the deadline; then, if all is done, ends the thread
    void stop(std::chrono::steady_clock::time_point deadline) {
        if (!running || on_its_thread() || !done.wait_until(pushed.get(), &deadline)) {
            return;
        }
        stopping.store(true);
        pushed.add();
        thread.join();
        running = false;
    }

    bool on_its_thread() const { return std::this_thread::get_id() == id.load(std::memory_order_relaxed); }

private:
    void work() {
#if defined(__linux__)
        pthread_setname_np(pthread_self(), name.c_str());
#endif
        for (uint64_t n = 1;; n++) {
            pushed.wait(n);
            work_item * item = nullptr;
            {
                std::lock_guard<std::mutex> lock(mutex);
                item = head;
                if (item != nullptr) {
                    head = item->next;
                    if (head == nullptr) {
                        tail = &head;
                    }
                }
            }
            if (item == nullptr) {
                if (stopping.load()) {
                    done.add();
                    return;
                }
                continue;
            }
            item->run();
            delete item;
            done.add();
        }
    }

    const std::string name;
    std::mutex        mutex; // guards head, tail, n_tickets, running
    work_item *       head      = nullptr;
    work_item **      tail      = &head;
    uint64_t          n_tickets = 0;
    bool              running   = false;
    std::thread       thread;
    std::atomic<std::thread::id> id{};
    std::atomic<bool> stopping{false};
    rising            pushed;
    rising            done;
};

} // namespace pgg
