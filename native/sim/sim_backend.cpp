// Simulated devices: an ordinary ggml backend that allocates nothing and computes nothing, but refuses what
// the device it stands for would refuse, and counts what it was asked to do. A plan is made by running ggml's
// own inference, graph cutting and allocation over such devices.
//
// Device structs are immortal: meta devices keep their addresses for ever. A released slot is used again only
// for a device that differs in nothing that a meta device may have kept (name, alignment, twin, ...).

#include "base/guard.h"
#include "sim/host_plan.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

constexpr size_t DEFAULT_ALIGNMENT = 128;

//
// Addresses: nothing is ever mapped there (no user address has bit 50 set on the systems that ggml knows), so a
// stray access faults at once. Buffers don't overlap until the counter has gone once around 32 PiB.
//

constexpr uint64_t ADDRESS_BEGIN = uint64_t(1) << 50;
constexpr uint64_t ADDRESS_END   = uint64_t(1) << 55;
constexpr uint64_t ADDRESS_GRAIN = uint64_t(1) << 24;

void * take_addresses(size_t size) {
    static std::mutex mutex;
    static uint64_t   next = ADDRESS_BEGIN;

    // one grain more than needed, so that the end of a buffer is never the beginning of another one
    const uint64_t span = (uint64_t(size) / ADDRESS_GRAIN + 2) * ADDRESS_GRAIN;
    if (span > ADDRESS_END - ADDRESS_BEGIN) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(mutex);
    if (span > ADDRESS_END - next) {
        next = ADDRESS_BEGIN;
    }
    const uint64_t base = next;
    next += span;
    return reinterpret_cast<void *>(static_cast<uintptr_t>(base));
}

//
// Devices
//

struct counters {
    std::atomic<uint64_t> graph_computes{0}, nodes{0}, allreduces{0}, allreduce_bytes{0}, copies{0}, copy_bytes{0},
        sets{0}, set_bytes{0}, gets{0}, get_bytes{0};

    void reset() {
        for (auto * c : { &graph_computes, &nodes, &allreduces, &allreduce_bytes, &copies, &copy_bytes, &sets, &set_bytes, &gets, &get_bytes }) {
            c->store(0, std::memory_order_relaxed);
        }
    }
};

void count(std::atomic<uint64_t> & n, std::atomic<uint64_t> & bytes, size_t size) {
    n.fetch_add(1, std::memory_order_relaxed);
    bytes.fetch_add(size, std::memory_order_relaxed);
}

struct sim_device {
    ggml_backend_device      dev  = {};
    ggml_backend_buffer_type buft = {};

    std::string        name, description, buft_name;
    size_t             memory = 0, alignment = DEFAULT_ALIGNMENT, max_size = 0;
    double             bandwidth = 0, flops = 0;
    ggml_backend_dev_t twin = nullptr;
    bool               comm = false;

    ggml_backend_dev_caps caps = {};

    bool                released = false;     // guarded by slots().mutex
    std::atomic<size_t> handles{0};           // buffers, backends and events that live
    std::mutex          memory_mutex;         // for the two numbers below
    size_t              bytes = 0, bytes_peak = 0;
    counters            stats;
};

struct slot_list {
    std::mutex                              mutex;
    std::deque<std::unique_ptr<sim_device>> devices;
};

slot_list & slots() {
    static slot_list * list = new slot_list; // never destroyed: devices outlive static destructors
    return *list;
}

sim_device & of(ggml_backend_dev_t dev)         { return *static_cast<sim_device *>(dev->context); }
sim_device & of(ggml_backend_buffer_type_t buft) { return *static_cast<sim_device *>(buft->context); }
sim_device & of(ggml_backend_buffer_t buffer)    { return of(buffer->buft); }
sim_device & of(ggml_backend_t backend)          { return *static_cast<sim_device *>(backend->context); }

thread_local bool unlimited = false; // buffers that this thread allocates take no memory away

bool is_sim_buft(ggml_backend_buffer_type_t buft);
bool is_sim_buffer(ggml_backend_buffer_t buffer) { return buffer != nullptr && is_sim_buft(buffer->buft); }
bool is_sim_backend(ggml_backend_t backend);

// Before: a real device knows its own buffers and looks into them (CUDA: is the source on this device?; RPC: the
// remote address). Ours and those of a meta device mean nothing to it, so it gets copies of the op and its sources
// as they are before allocation. That two sources are one tensor, or views of one, stays visible.
class without_buffers {
  public:
    explicit without_buffers(const ggml_tensor * op) {
        result = mask(op);
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            result->src[i] = mask(op->src[i]);
        }
    }
    const ggml_tensor * get() const { return result; }

  private:
    static constexpr int MAX = 2*(GGML_MAX_SRC + 1);
    const ggml_tensor *  from[MAX];
    ggml_tensor          to[MAX];
    int                  n = 0;
    ggml_tensor *        result = nullptr;

    ggml_tensor * mask(const ggml_tensor * t) {
        if (t == nullptr) {
            return nullptr;
        }
        for (int i = 0; i < n; i++) {
            if (from[i] == t) {
                return &to[i];
            }
        }
        const int k = n++;
        from[k] = t;
        to[k]   = *t;
        if (t->buffer != nullptr && (is_sim_buffer(t->buffer) || ggml_backend_buffer_is_meta(t->buffer))) {
            to[k].buffer = nullptr;
            to[k].data   = nullptr;
            to[k].extra  = nullptr;
        }
        to[k].view_src = mask(t->view_src);
        return &to[k];
    }
};

//
// Buffers
//

// What a get would leave in the caller's memory must not be what happened to lie there.
void fill(void * data, size_t size) {
    if (!pgg::plan_owns_host_address(data)) {
        memset(data, 0, size);
    }
}

void buffer_free(ggml_backend_buffer_t buffer) {
    sim_device & d = of(buffer);
    {
        std::lock_guard<std::mutex> lock(d.memory_mutex);
        d.bytes -= buffer->size;
    }
    d.handles.fetch_sub(1);
}

void * buffer_get_base(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

// memset and clear move nothing between host and device, so they are not transfers and are not counted
void buffer_memset_tensor(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
void buffer_clear(ggml_backend_buffer_t, uint8_t) {}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor *, const void *, size_t, size_t size) {
    counters & c = of(buffer).stats;
    count(c.sets, c.set_bytes, size);
}

void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor *, void * data, size_t, size_t size) {
    counters & c = of(buffer).stats;
    count(c.gets, c.get_bytes, size);
    fill(data, size);
}

void buffer_set_tensor_2d(ggml_backend_buffer_t buffer, ggml_tensor *, const void *, size_t, size_t size, size_t n_copies, size_t, size_t) {
    counters & c = of(buffer).stats;
    count(c.sets, c.set_bytes, size*n_copies);
}

void buffer_get_tensor_2d(ggml_backend_buffer_t buffer, const ggml_tensor *, void * data, size_t, size_t size, size_t n_copies, size_t, size_t stride_data) {
    counters & c = of(buffer).stats;
    count(c.gets, c.get_bytes, size*n_copies);
    for (size_t i = 0; i < n_copies; i++) {
        fill(static_cast<char *>(data) + i*stride_data, size);
    }
}

bool buffer_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor *) {
    ggml_backend_buffer_t src_buffer = src->view_src ? src->view_src->buffer : src->buffer;
    if (!is_sim_buffer(src_buffer)) {
        return false; // ggml then goes through set_tensor
    }
    counters & c = of(buffer).stats;
    count(c.copies, c.copy_bytes, ggml_nbytes(src));
    return true;
}

const ggml_backend_buffer_i BUFFER_IFACE = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ buffer_memset_tensor,
    /* .set_tensor    = */ buffer_set_tensor,
    /* .get_tensor    = */ buffer_get_tensor,
    /* .set_tensor_2d = */ buffer_set_tensor_2d,
    /* .get_tensor_2d = */ buffer_get_tensor_2d,
    /* .cpy_tensor    = */ buffer_cpy_tensor,
    /* .clear         = */ buffer_clear,
    /* .reset         = */ nullptr,
};

const char * buft_get_name(ggml_backend_buffer_type_t buft) {
    return of(buft).buft_name.c_str();
}

bool is_sim_buft(ggml_backend_buffer_type_t buft) {
    return buft->iface.get_name == buft_get_name;
}

ggml_backend_buffer_t buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    sim_device & d = of(buft);
    if (d.max_size != 0 && size > d.max_size) {
        GGML_LOG_ERROR("%s: %s: a buffer of %zu bytes is larger than the largest one possible there, %zu bytes\n",
            __func__, d.name.c_str(), size, d.max_size);
        return nullptr;
    }
    void * base = take_addresses(size);
    if (base == nullptr) {
        GGML_LOG_ERROR("%s: %s: no address range for a buffer of %zu bytes\n", __func__, d.name.c_str(), size);
        return nullptr;
    }
    {
        std::lock_guard<std::mutex> lock(d.memory_mutex);
        if (d.memory != 0 && !unlimited && size > d.memory - std::min(d.memory, d.bytes)) {
            GGML_LOG_ERROR("%s: %s: out of memory: %zu bytes asked for, %zu of %zu bytes free\n",
                __func__, d.name.c_str(), size, d.memory - std::min(d.memory, d.bytes), d.memory);
            return nullptr;
        }
        d.bytes += size;
        d.bytes_peak = std::max(d.bytes_peak, d.bytes);
    }
    d.handles.fetch_add(1);
    return ggml_backend_buffer_init(buft, BUFFER_IFACE, base, size);
}

size_t buft_get_alignment(ggml_backend_buffer_type_t buft) {
    return of(buft).alignment;
}

size_t buft_get_max_size(ggml_backend_buffer_type_t buft) {
    const sim_device & d = of(buft);
    return d.max_size != 0 ? d.max_size : SIZE_MAX;
}

size_t buft_get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    const sim_device & d = of(buft);
    if (d.twin == nullptr) {
        return ggml_nbytes(tensor);
    }
    return ggml_backend_buft_get_alloc_size(ggml_backend_dev_buffer_type(d.twin), without_buffers(tensor).get());
}

const ggml_backend_buffer_type_i BUFT_IFACE = {
    /* .get_name       = */ buft_get_name,
    /* .alloc_buffer   = */ buft_alloc_buffer,
    /* .get_alignment  = */ buft_get_alignment,
    /* .get_max_size   = */ buft_get_max_size,
    /* .get_alloc_size = */ buft_get_alloc_size,
    /* .is_host        = */ nullptr,
};

//
// Backends (streams)
//

const char * backend_get_name(ggml_backend_t backend) {
    return of(backend).name.c_str();
}

void backend_free(ggml_backend_t backend) {
    of(backend).handles.fetch_sub(1);
    delete backend;
}

void backend_set_tensor_async(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    ggml_backend_tensor_set(tensor, data, offset, size);
}

void backend_get_tensor_async(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    ggml_backend_tensor_get(tensor, data, offset, size);
}

void backend_set_tensor_2d_async(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size,
        size_t n_copies, size_t stride_tensor, size_t stride_data) {
    ggml_backend_tensor_set_2d(tensor, data, offset, size, n_copies, stride_tensor, stride_data);
}

void backend_get_tensor_2d_async(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size,
        size_t n_copies, size_t stride_tensor, size_t stride_data) {
    ggml_backend_tensor_get_2d(tensor, data, offset, size, n_copies, stride_tensor, stride_data);
}

bool backend_cpy_tensor_async(ggml_backend_t src, ggml_backend_t dst, const ggml_tensor * src_tensor, ggml_tensor * dst_tensor) {
    ggml_backend_buffer_t dst_buffer = dst_tensor->view_src ? dst_tensor->view_src->buffer : dst_tensor->buffer;
    if (!is_sim_backend(src) || !is_sim_backend(dst) || !is_sim_buffer(dst_buffer)) {
        return false;
    }
    return buffer_cpy_tensor(dst_buffer, src_tensor, dst_tensor);
}

void backend_synchronize(ggml_backend_t) {}

ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    counters & c = of(backend).stats;
    uint64_t   n = 0;
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        n += (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_op_is_empty(node->op);
    }
    c.nodes.fetch_add(n, std::memory_order_relaxed);
    c.graph_computes.fetch_add(1, std::memory_order_relaxed);
    return GGML_STATUS_SUCCESS;
}

void backend_event_record(ggml_backend_t, ggml_backend_event_t) {}
void backend_event_wait(ggml_backend_t, ggml_backend_event_t) {}

const ggml_backend_i BACKEND_IFACE = {
    /* .get_name            = */ backend_get_name,
    /* .free                = */ backend_free,
    /* .set_tensor_async    = */ backend_set_tensor_async,
    /* .get_tensor_async    = */ backend_get_tensor_async,
    /* .set_tensor_2d_async = */ backend_set_tensor_2d_async,
    /* .get_tensor_2d_async = */ backend_get_tensor_2d_async,
    /* .cpy_tensor_async    = */ backend_cpy_tensor_async,
    /* .synchronize         = */ backend_synchronize,
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ backend_graph_compute,
    /* .event_record        = */ backend_event_record,
    /* .event_wait          = */ backend_event_wait,
    /* .graph_optimize      = */ nullptr,
};

bool is_sim_backend(ggml_backend_t backend) {
    return backend != nullptr && backend->iface.get_name == backend_get_name;
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = { 0x70, 0x67, 0x67, 0x2d, 0x73, 0x69, 0x6d, 0x2d, 0x9b, 0x41, 0x5c, 0x0e, 0x37, 0xd2, 0x86, 0x11 };
    return &guid;
}

//
// The communicator
//

struct communicator {
    std::vector<sim_device *> devices;
};

void * comm_init(ggml_backend_t * backends, size_t n_backends) {
    auto comm = std::make_unique<communicator>();
    for (size_t i = 0; i < n_backends; i++) {
        if (!is_sim_backend(backends[i]) || !of(backends[i]).comm) {
            return nullptr; // ggml then reduces by copies and additions
        }
        comm->devices.push_back(&of(backends[i]));
    }
    return comm.release();
}

void comm_free(void * comm) {
    delete static_cast<communicator *>(comm);
}

bool comm_allreduce_tensor(void * comm, ggml_tensor ** tensors) {
    const auto & devices = static_cast<communicator *>(comm)->devices;
    for (size_t i = 0; i < devices.size(); i++) {
        count(devices[i]->stats.allreduces, devices[i]->stats.allreduce_bytes, ggml_nbytes(tensors[i]));
    }
    return true;
}

//
// The device interface
//

const char * dev_get_name(ggml_backend_dev_t dev)        { return of(dev).name.c_str(); }
const char * dev_get_description(ggml_backend_dev_t dev) { return of(dev).description.c_str(); }

// unlimited memory is "none to report" (0 of 0), as ggml has it
void dev_get_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    sim_device & d = of(dev);
    std::lock_guard<std::mutex> lock(d.memory_mutex);
    *total = d.memory;
    *free  = d.memory - std::min(d.memory, d.bytes);
}

enum ggml_backend_dev_type dev_get_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void dev_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = dev_get_name(dev);
    props->description = dev_get_description(dev);
    props->type        = dev_get_type(dev);
    props->caps        = of(dev).caps;
    dev_get_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend_t dev_init_backend(ggml_backend_dev_t dev, const char *) {
    of(dev).handles.fetch_add(1);
    return new ggml_backend { backend_guid(), BACKEND_IFACE, dev, &of(dev) };
}

ggml_backend_buffer_type_t dev_get_buffer_type(ggml_backend_dev_t dev) {
    return &of(dev).buft;
}

bool dev_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    ggml_backend_dev_t answers = of(dev).twin;
    if (answers == nullptr) {
        answers = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        if (answers == nullptr) {
            return false;
        }
    }
    return ggml_backend_dev_supports_op(answers, without_buffers(op).get());
}

bool dev_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == &of(dev).buft;
}

bool dev_offload_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    ggml_backend_dev_t twin = of(dev).twin;
    return twin != nullptr && ggml_backend_dev_offload_op(twin, without_buffers(op).get());
}

ggml_backend_event_t dev_event_new(ggml_backend_dev_t dev) {
    if (!of(dev).caps.events) {
        return nullptr;
    }
    of(dev).handles.fetch_add(1);
    return new ggml_backend_event { dev, nullptr };
}

void dev_event_free(ggml_backend_dev_t dev, ggml_backend_event_t event) {
    of(dev).handles.fetch_sub(1);
    delete event;
}

void dev_event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

const ggml_backend_device_i DEVICE_IFACE = {
    /* .get_name             = */ dev_get_name,
    /* .get_description      = */ dev_get_description,
    /* .get_memory           = */ dev_get_memory,
    /* .get_type             = */ dev_get_type,
    /* .get_props            = */ dev_get_props,
    /* .init_backend         = */ dev_init_backend,
    /* .get_buffer_type      = */ dev_get_buffer_type,
    /* .get_host_buffer_type = */ nullptr,
    /* .buffer_from_host_ptr = */ nullptr,
    /* .supports_op          = */ dev_supports_op,
    /* .supports_buft        = */ dev_supports_buft,
    /* .offload_op           = */ dev_offload_op,
    /* .event_new            = */ dev_event_new,
    /* .event_free           = */ dev_event_free,
    /* .event_synchronize    = */ dev_event_synchronize,
};

//
// The registry
//

const char * reg_get_name(ggml_backend_reg_t) { return "SIM"; }

size_t reg_get_device_count(ggml_backend_reg_t) {
    std::lock_guard<std::mutex> lock(slots().mutex);
    return slots().devices.size();
}

ggml_backend_dev_t reg_get_device(ggml_backend_reg_t, size_t index) {
    std::lock_guard<std::mutex> lock(slots().mutex);
    return index < slots().devices.size() ? &slots().devices[index]->dev : nullptr;
}

void * reg_get_proc_address(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, "ggml_backend_comm_init") == 0) {
        return reinterpret_cast<void *>(static_cast<ggml_backend_comm_init_t>(comm_init));
    }
    if (strcmp(name, "ggml_backend_comm_free") == 0) {
        return reinterpret_cast<void *>(static_cast<ggml_backend_comm_free_t>(comm_free));
    }
    if (strcmp(name, "ggml_backend_comm_allreduce_tensor") == 0) {
        return reinterpret_cast<void *>(static_cast<ggml_backend_comm_allreduce_tensor_t>(comm_allreduce_tensor));
    }
    return nullptr;
}

ggml_backend_reg REG = {
    /* .api_version = */ GGML_BACKEND_API_VERSION,
    /* .iface       = */ { reg_get_name, reg_get_device_count, reg_get_device, reg_get_proc_address },
    /* .context     = */ nullptr,
};

// All that a meta device may have kept from the slot's last life. Memory and speed are asked for anew each time.
bool same_kind(const sim_device & a, const sim_device & b) {
    return a.name == b.name && a.description == b.description && a.alignment == b.alignment &&
        a.max_size == b.max_size && a.twin == b.twin && a.comm == b.comm;
}

ggml_backend_dev_t make_device(const pgg_sim_params & params) {
    if (params.name == nullptr || params.name[0] == '\0') {
        throw pgg::error(PGG_ERROR_ARGUMENT, "a simulated device needs a name");
    }
    const std::string name = params.name;
    ggml_backend_dev_t twin = params.twin;
    if (twin != nullptr && ggml_backend_dev_type(twin) == GGML_BACKEND_DEVICE_TYPE_META) {
        throw pgg::error(PGG_ERROR_ARGUMENT, "simulated device " + name + ": its twin is a meta device; give one of the devices below it");
    }
    if (twin != nullptr && pgg_sim_is(twin)) {
        throw pgg::error(PGG_ERROR_ARGUMENT, "simulated device " + name + ": its twin " + ggml_backend_dev_name(twin) +
            " is simulated itself; give the device that it stands for");
    }
    if (params.alignment != 0 && (params.alignment & (params.alignment - 1)) != 0) {
        throw pgg::error(PGG_ERROR_ARGUMENT, "simulated device " + name + ": alignment " + std::to_string(params.alignment) + " is not a power of two");
    }

    auto fresh = std::make_unique<sim_device>();
    fresh->name        = name;
    fresh->description = params.description ? params.description : "simulated";
    fresh->buft_name   = name;
    fresh->memory      = params.memory;
    fresh->alignment   = params.alignment;
    fresh->max_size    = params.max_size;
    fresh->bandwidth   = params.bandwidth;
    fresh->flops       = params.flops;
    fresh->twin        = twin;
    fresh->comm        = params.comm;
    fresh->caps.async        = true;
    fresh->caps.mmap_support = true; // files are never read for us
    if (twin != nullptr) {
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(twin, &props);
        fresh->caps.async  = props.caps.async;
        fresh->caps.events = props.caps.events;
        // host_buffer and buffer_from_host_ptr stay off: they promise memory that can be read

        ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(twin);
        if (fresh->alignment == 0) {
            fresh->alignment = ggml_backend_buft_get_alignment(buft);
        }
        if (fresh->max_size == 0) {
            const size_t max_size = ggml_backend_buft_get_max_size(buft);
            fresh->max_size = max_size == SIZE_MAX ? 0 : max_size;
        }
    }
    if (fresh->alignment == 0) {
        fresh->alignment = DEFAULT_ALIGNMENT;
    }

    std::lock_guard<std::mutex> lock(slots().mutex);
    for (auto & slot : slots().devices) {
        if (slot->released && slot->handles.load() == 0 && same_kind(*slot, *fresh)) {
            slot->released  = false;
            slot->memory    = fresh->memory;
            slot->bandwidth = fresh->bandwidth;
            slot->flops     = fresh->flops;
            slot->caps      = fresh->caps;
            slot->bytes_peak = 0;
            slot->stats.reset();
            return &slot->dev;
        }
    }
    fresh->dev  = { DEVICE_IFACE, &REG, fresh.get() };
    fresh->buft = { BUFT_IFACE, &fresh->dev, fresh.get() };
    slots().devices.push_back(std::move(fresh));
    return &slots().devices.back()->dev;
}

} // namespace

ggml_backend_reg_t pgg_sim_reg(void) {
    return &REG;
}

ggml_backend_dev_t pgg_sim_device(const struct pgg_sim_params * params) {
    return pgg::guarded([&] {
        if (params == nullptr) {
            throw pgg::error(PGG_ERROR_ARGUMENT, "pgg_sim_device: params is NULL");
        }
        return make_device(*params);
    }, ggml_backend_dev_t(nullptr));
}

void pgg_sim_release(ggml_backend_dev_t dev) {
    if (pgg_sim_is(dev)) {
        std::lock_guard<std::mutex> lock(slots().mutex);
        of(dev).released = true;
    }
}

bool pgg_sim_is(ggml_backend_dev_t dev) {
    return dev != nullptr && dev->iface.get_name == dev_get_name;
}

void pgg_sim_stats(ggml_backend_dev_t dev, struct pgg_device_stats * stats) {
    *stats = {};
    if (!pgg_sim_is(dev)) {
        return;
    }
    sim_device & d = of(dev);
    const counters & c = d.stats;
    stats->graph_computes  = c.graph_computes;
    stats->nodes           = c.nodes;
    stats->allreduces      = c.allreduces;
    stats->allreduce_bytes = c.allreduce_bytes;
    stats->copies          = c.copies;
    stats->copy_bytes      = c.copy_bytes;
    stats->sets            = c.sets;
    stats->set_bytes       = c.set_bytes;
    stats->gets            = c.gets;
    stats->get_bytes       = c.get_bytes;
    std::lock_guard<std::mutex> lock(d.memory_mutex);
    stats->buffer_bytes      = d.bytes;
    stats->buffer_bytes_peak = d.bytes_peak;
}

void pgg_sim_stats_reset(ggml_backend_dev_t dev) {
    if (!pgg_sim_is(dev)) {
        return;
    }
    sim_device & d = of(dev);
    d.stats.reset();
    std::lock_guard<std::mutex> lock(d.memory_mutex);
    d.bytes_peak = d.bytes;
}

void pgg_sim_unlimited(bool on) {
    unlimited = on;
}
