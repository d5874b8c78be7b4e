// Virtual CPU devices: VCPU0, VCPU1, ... Each wraps ggml's CPU backend with threads, an in-order queue and a kind of
// buffer of its own that is not host memory to the rest of ggml, so that several of them behave like several
// accelerators: they compute at the same time, and what passes between them is copied.
//
// Failures. Work runs on the device's thread, inside a guard. What fails there is kept as a `failure` in the backend
// (the stream) that queued it; from then on its work is skipped, but it still takes part in copies and all-reduces, so
// nobody waits for it in vain, and its failure spreads to those that would have used the result. The failure is
// delivered once, to whoever synchronizes or computes next: synchronize throws inside a guard, and otherwise leaves a
// pending error and a log line; graph_compute returns GGML_STATUS_FAILED with a pending error. The stream works again
// after that, and so do those that share a communicator with it. A device is lost only when its thread cannot be started.

#include "vcpu/vcpu.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pgg::vcpu {

std::atomic<bool> in_child{false};
std::atomic<bool> closing{false};

std::mutex & several() {
    static std::mutex * m = new std::mutex;
    return *m;
}

void report(int kind, const std::string & message) {
    if (pgg_guard_depth() > 0) {
        throw error(kind, message);
    }
    pgg_error_set(kind, message.c_str());
    GGML_LOG_ERROR("%s\n", message.c_str());
}

bool usable(const device & d, int * kind, std::string * why) {
    if (in_child.load(std::memory_order_relaxed)) {
        *kind = PGG_ERROR_FORK;
        *why  = d.name + " belongs to the process that this one was forked from; start workers with \"spawn\" instead";
        return false;
    }
    if (const std::string * reason = d.lost.load()) {
        *kind = PGG_ERROR_DEVICE;
        *why  = d.name + " is lost: " + *reason;
        return false;
    }
    if (closing.load(std::memory_order_relaxed)) {
        *kind = PGG_ERROR_DEVICE;
        *why  = d.name + " takes no work any more: the process ends";
        return false;
    }
    return true;
}

namespace {

void close_all();

// A virtual device's thread, and what must happen before it is there: the lists that ggml's CPU backend makes when
// they are first asked for must be older than our exit handler, so that they outlive the work.
void start(device & d) {
    static std::once_flag once;
    try {
        std::call_once(once, [] {
            ggml_backend_reg_t reg = ggml_backend_cpu_reg();
            ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(reg, 0);
            auto extra = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
            if (extra != nullptr) {
                extra(cpu);
            }
            std::atexit(close_all);
        });
        d.queue.start();
    } catch (const std::exception & e) {
        d.lost.store(new std::string(std::string("its thread could not be started (") + e.what() + ")"));
    }
}

size_t host_memory() {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), &free, &total);
    return total;
}

//
// devices
//

const char * dev_get_name(ggml_backend_dev_t dev) {
    return dev_of(dev).name.c_str();
}

const char * dev_get_description(ggml_backend_dev_t dev) {
    return dev_of(dev).description.c_str();
}

void dev_get_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    device & d = dev_of(dev);
    const size_t used = d.stats.buffer_bytes.load();
    *total = d.memory.load();
    *free  = *total > used ? *total - used : 0;
}

enum ggml_backend_dev_type dev_get_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void dev_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = dev_get_name(dev);
    props->description = dev_get_description(dev);
    props->type        = dev_get_type(dev);
    props->device_id   = nullptr;
    dev_get_memory(dev, &props->memory_free, &props->memory_total);
    props->caps.async                = true;
    props->caps.host_buffer          = false;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = false;
    props->caps.mmap_support         = true;
}

ggml_guid_t guid() {
    static ggml_guid g = { 0x70, 0x67, 0x67, 0x76, 0x63, 0x70, 0x75, 0x00, 0x9b, 0x41, 0x5e, 0x1c, 0x07, 0xd2, 0x88, 0x3a };
    return &g;
}

ggml_backend_t dev_init_backend(ggml_backend_dev_t dev, const char *) {
    device & d = dev_of(dev);
    int kind = 0;
    std::string why;
    if (!usable(d, &kind, &why) || (start(d), !usable(d, &kind, &why))) {
        report(kind, why);
        return nullptr;
    }
    return new ggml_backend{ guid(), backend_interface, dev, new stream(d) };
}

ggml_backend_buffer_type_t dev_get_buffer_type(ggml_backend_dev_t dev) {
    return &dev_of(dev).buft;
}

bool dev_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), op);
}

bool dev_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == &dev_of(dev).buft;
}

//
// the registry, and the list of devices
//

std::mutex & list_mutex() {
    static std::mutex * m = new std::mutex;
    return *m;
}

std::atomic<device *> list[MAX_DEVICES];

void close_all() {
    if (in_child.load()) {
        return;
    }
    closing.store(true);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    for (std::atomic<device *> & d : list) {
        if (d.load() != nullptr) {
            d.load()->queue.stop(deadline);
        }
    }
}

const char * reg_get_name(ggml_backend_reg_t) {
    return "VCPU";
}

size_t reg_get_device_count(ggml_backend_reg_t) {
    size_t n = MAX_DEVICES;
    while (n > 0 && list[n - 1].load() == nullptr) {
        n--;
    }
    return n;
}

ggml_backend_dev_t reg_get_device(ggml_backend_reg_t, size_t index) {
    return pgg_vcpu_device((int) index, 0, 0);
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    if (is_vcpu(backend)) {
        stream & s = stream_of(backend);
        s.abort_callback.store(nullptr);
        s.abort_data.store(data);
        s.abort_callback.store(callback);
    }
}

// Not here: ggml_backend_set_n_threads, by which llama.cpp would give every device all threads of the host.
void * reg_get_proc_address(ggml_backend_reg_t, const char * name) {
    const std::string n = name;
    if (n == "ggml_backend_comm_init") {
        return (void *) comm_init;
    }
    if (n == "ggml_backend_comm_free") {
        return (void *) comm_free;
    }
    if (n == "ggml_backend_comm_allreduce_tensor") {
        return (void *) comm_allreduce_tensor;
    }
    if (n == "ggml_backend_set_abort_callback") {
        return (void *) set_abort_callback;
    }
    return nullptr;
}

device * new_device(int index, int n_threads, size_t memory) {
#if !defined(_WIN32)
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { in_child.store(true); }); });
#endif
    device * d = new device(index, n_threads, memory);
    d->description = std::string("virtual device on ") +
        ggml_backend_dev_description(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0));

    d->buft.iface   = buft_interface;
    d->buft.device  = &d->dev;
    d->buft.context = d;

    d->dev.iface = {};
    d->dev.iface.get_name        = dev_get_name;
    d->dev.iface.get_description = dev_get_description;
    d->dev.iface.get_memory      = dev_get_memory;
    d->dev.iface.get_type        = dev_get_type;
    d->dev.iface.get_props       = dev_get_props;
    d->dev.iface.init_backend    = dev_init_backend;
    d->dev.iface.get_buffer_type = dev_get_buffer_type;
    d->dev.iface.supports_op     = dev_supports_op;
    d->dev.iface.supports_buft   = dev_supports_buft;
    d->dev.reg     = pgg_vcpu_reg();
    d->dev.context = d;
    return d;
}

device * vcpu_or_error(ggml_backend_dev_t dev, const char * function) {
    if (pgg_vcpu_is(dev)) {
        return &dev_of(dev);
    }
    pgg_error_set(PGG_ERROR_ARGUMENT, (std::string(function) + ": " +
        (dev != nullptr ? ggml_backend_dev_name(dev) : "NULL") + " is not a virtual CPU device").c_str());
    return nullptr;
}

// Programs of llama.cpp see virtual devices when the environment asks for them: PYGGML_VCPU=2, and PYGGML_VCPU_THREADS=3
// or, one number for each device, 3,1.
struct from_environment {
    from_environment() {
        const char * n_text = getenv("PYGGML_VCPU");
        if (n_text == nullptr || *n_text == '\0') {
            return;
        }
        char * end = nullptr;
        const long n = strtol(n_text, &end, 10);
        if (*end != '\0' || n < 0 || n > MAX_DEVICES) {
            fprintf(stderr, "PYGGML_VCPU=%s is ignored: expected a number of devices from 0 to %d\n", n_text, MAX_DEVICES);
            return;
        }
        const char * threads_text = getenv("PYGGML_VCPU_THREADS");
        long threads = 1;
        for (int i = 0; i < n; i++) {
            if (threads_text != nullptr && *threads_text != '\0') {
                threads = strtol(threads_text, &end, 10);
                if (end == threads_text || (*end != '\0' && *end != ',') || threads < 1 || threads > MAX_THREADS) {
                    fprintf(stderr, "PYGGML_VCPU_THREADS: \"%s\" is ignored: expected numbers from 1 to %d, with commas between them\n",
                        threads_text, MAX_THREADS);
                    threads = 1;
                    threads_text = nullptr;
                } else {
                    threads_text = *end == ',' ? end + 1 : end;
                }
            }
            pgg_vcpu_device(i, (int) threads, 0);
        }
        if (n > 0) {
            ggml_backend_register(pgg_vcpu_reg());
        }
    }
};

const from_environment at_load;

} // namespace
} // namespace pgg::vcpu

using namespace pgg::vcpu;

extern "C" {

ggml_backend_reg_t pgg_vcpu_reg(void) {
    static ggml_backend_reg reg = {
        /* .api_version = */ GGML_BACKEND_API_VERSION,
        /* .iface       = */ { reg_get_name, reg_get_device_count, reg_get_device, reg_get_proc_address },
        /* .context     = */ nullptr,
    };
    return &reg;
}

ggml_backend_dev_t pgg_vcpu_device(int index, int n_threads, size_t memory) {
    if (index < 0 || index >= MAX_DEVICES || n_threads < 0 || n_threads > MAX_THREADS) {
        pgg_error_set(PGG_ERROR_ARGUMENT, ("virtual CPU device " + std::to_string(index) + " with " + std::to_string(n_threads) +
            " threads: expected an index from 0 to " + std::to_string(MAX_DEVICES - 1) + " and at most " +
            std::to_string(MAX_THREADS) + " threads").c_str());
        return nullptr;
    }
    if (in_child.load()) { // the list may be locked by a thread that is not here
        pgg_error_set(PGG_ERROR_FORK, "virtual CPU devices belong to the process that this one was forked from; start workers with "
            "\"spawn\" instead");
        return nullptr;
    }
    return pgg::guarded([&] {
        std::lock_guard<std::mutex> lock(list_mutex());
        device * d = list[index].load();
        if (d == nullptr) {
            d = new_device(index, n_threads > 0 ? n_threads : 1, memory > 0 ? memory : host_memory());
            list[index].store(d);
        } else {
            if (n_threads > 0) {
                d->n_threads.store(n_threads);
            }
            if (memory > 0) {
                d->memory.store(memory);
            }
        }
        return &d->dev;
    }, (ggml_backend_dev_t) nullptr);
}

void pgg_vcpu_set_threads(ggml_backend_dev_t dev, int n_threads) {
    device * d = vcpu_or_error(dev, __func__);
    if (d == nullptr) {
        return;
    }
    if (n_threads < 1 || n_threads > MAX_THREADS) {
        pgg_error_set(PGG_ERROR_ARGUMENT, (d->name + ": " + std::to_string(n_threads) + " threads: expected 1 to " +
            std::to_string(MAX_THREADS)).c_str());
        return;
    }
    d->n_threads.store(n_threads);
}

bool pgg_vcpu_is(ggml_backend_dev_t dev) {
    return dev != nullptr && dev->iface.get_name == dev_get_name;
}

void pgg_vcpu_stats(ggml_backend_dev_t dev, struct pgg_device_stats * stats) {
    *stats = {};
    device * d = vcpu_or_error(dev, __func__);
    if (d == nullptr) {
        return;
    }
    int kind = 0;
    std::string why;
    if (usable(*d, &kind, &why)) {
        d->queue.wait_idle();
    }
    const counters & c = d->stats;
    stats->graph_computes    = c.graph_computes;
    stats->nodes             = c.nodes;
    stats->allreduces        = c.allreduces;
    stats->allreduce_bytes   = c.allreduce_bytes;
    stats->copies            = c.copies;
    stats->copy_bytes        = c.copy_bytes;
    stats->sets              = c.sets;
    stats->set_bytes         = c.set_bytes;
    stats->gets              = c.gets;
    stats->get_bytes         = c.get_bytes;
    stats->buffer_bytes      = c.buffer_bytes;
    stats->buffer_bytes_peak = c.buffer_bytes_peak;
    stats->busy_us           = c.busy_us;
}

void pgg_vcpu_stats_reset(ggml_backend_dev_t dev) {
    struct pgg_device_stats before;
    pgg_vcpu_stats(dev, &before); // waits
    if (!pgg_vcpu_is(dev)) {
        return;
    }
    counters & c = dev_of(dev).stats;
    for (std::atomic<uint64_t> * n : { &c.graph_computes, &c.nodes, &c.allreduces, &c.allreduce_bytes, &c.copies, &c.copy_bytes,
            &c.sets, &c.set_bytes, &c.gets, &c.get_bytes, &c.busy_us }) {
        n->store(0);
    }
    c.buffer_bytes_peak.store(c.buffer_bytes.load());
}

const char * pgg_vcpu_lost(ggml_backend_dev_t dev) {
    device * d = vcpu_or_error(dev, __func__);
    const std::string * reason = d != nullptr ? d->lost.load() : nullptr;
    return reason != nullptr ? reason->c_str() : nullptr;
}

void pgg_vcpu_revive(ggml_backend_dev_t dev) {
    if (device * d = vcpu_or_error(dev, __func__)) {
        d->lost.store(nullptr);
    }
}

} // extern "C"
