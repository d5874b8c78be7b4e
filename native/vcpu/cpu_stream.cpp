// Buffers and streams of virtual CPU devices: what runs on a device's queue. See cpu_backend.cpp.

#include "base/buffer_memory.h"
#include "vcpu/vcpu.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

namespace pgg::vcpu {
namespace {

bool usable_or_report(device & d) {
    int kind = 0;
    std::string why;
    if (!usable(d, &kind, &why)) {
        report(kind, why);
        return false;
    }
    return true;
}

//
// buffers
//


const char * buft_get_name(ggml_backend_buffer_type_t buft) {
    return dev_of(buft).name.c_str();
}

// what the calling thread did with a device, since t0
void note_on_host(int kind, device & d, int64_t t0, device * peer, size_t bytes) {
    if (trace::audience_ptr to = trace::listening()) {
        pgg_trace_event e = trace::event(kind, &d.dev);
        e.queued = e.start = t0;
        e.end    = trace::now();
        e.peer   = peer != nullptr ? &peer->dev : nullptr;
        e.bytes  = bytes;
        e.flags  = PGG_TRACE_EXACT;
        trace::record(*to, e, nullptr);
    }
}

// Waits for all that was queued before an access from outside of the queue.
bool quiet(device & d) {
    if (!usable_or_report(d)) {
        return false;
    }
    const int64_t t0 = trace::any() ? trace::now() : 0;
    d.queue.wait_idle();
    if (t0 != 0 && trace::now() - t0 > 1000) { // ns: else there was nothing to wait for
        note_on_host(PGG_TRACE_SYNC, d, t0, nullptr, 0);
    }
    return true;
}

void buffer_free(ggml_backend_buffer_t buffer) {
    memory_block * m = (memory_block *) buffer->context;
    if (!in_child.load(std::memory_order_relaxed)) {
        m->dev.queue.wait_idle();
    }
    m->dev.stats.buffer_bytes -= m->size;
    ggml_aligned_free(m->data, m->size);
    delete m;
}

void * buffer_get_base(ggml_backend_buffer_t buffer) {
    return ((memory_block *) buffer->context)->data;
}

void buffer_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    if (quiet(dev_of(buffer))) {
        memset((char *) tensor->data + offset, value, size);
    }
}

// n pieces of `size` bytes, from one pitch to another
void move(void * to, size_t to_pitch, const void * from, size_t from_pitch, size_t size, size_t n) {
    if (n == 1 || (size == to_pitch && size == from_pitch)) {
        memcpy(to, from, size * n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        memcpy((char *) to + i*to_pitch, (const char *) from + i*from_pitch, size);
    }
}

void buffer_set_2d(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    device & d = dev_of(buffer);
    if (quiet(d)) {
        move((char *) tensor->data + offset, stride_tensor, data, stride_data, size, n);
        count(d.stats.sets, d.stats.set_bytes, size * n);
    }
}

void buffer_get_2d(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    device & d = dev_of(buffer);
    if (quiet(d)) {
        move(data, stride_data, (const char *) tensor->data + offset, stride_tensor, size, n);
        count(d.stats.gets, d.stats.get_bytes, size * n);
    }
}

void buffer_set(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    buffer_set_2d(buffer, tensor, data, offset, size, 1, size, size);
}

void buffer_get(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    buffer_get_2d(buffer, tensor, data, offset, size, 1, size, size);
}

bool buffer_cpy(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    ggml_backend_buffer_t from = buffer_of(src);
    device & d = dev_of(buffer);
    const size_t size = ggml_nbytes(src);
    if (is_vcpu(from)) {
        if (!quiet(dev_of(from)) || !quiet(d)) {
            return true; // reported; another way to copy would only report it again
        }
        const int64_t t0 = trace::any() ? trace::now() : 0;
        memcpy(dst->data, src->data, size);
        count(d.stats.copies, d.stats.copy_bytes, size);
        if (t0 != 0) {
            note_on_host(PGG_TRACE_COPY, d, t0, &dev_of(from), size);
        }
        return true;
    }
    if (from != nullptr && ggml_backend_buffer_is_host(from)) {
        buffer_set(buffer, dst, src->data, 0, size);
        return true;
    }
    return false;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    memory_block * m = (memory_block *) buffer->context;
    if (quiet(m->dev)) {
        memset(m->data, value, m->size);
    }
}

const ggml_backend_buffer_i buffer_interface = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ buffer_memset_tensor,
    /* .set_tensor    = */ buffer_set,
    /* .get_tensor    = */ buffer_get,
    /* .set_tensor_2d = */ buffer_set_2d,
    /* .get_tensor_2d = */ buffer_get_2d,
    /* .cpy_tensor    = */ buffer_cpy,
    /* .clear         = */ buffer_clear,
    /* .reset         = */ nullptr,
};

ggml_backend_buffer_t buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    device & d = dev_of(buft);
    int kind = 0;
    std::string why;
    if (!usable(d, &kind, &why)) {
        GGML_LOG_ERROR("%s\n", why.c_str());
        return nullptr;
    }
    const uint64_t limit = d.memory.load();
    uint64_t before = d.stats.buffer_bytes.load();
    do {
        if (size > limit || before > limit - size) {
            GGML_LOG_ERROR("%s: cannot allocate %.2f MiB: %.2f of its %.2f MiB are in use\n", d.name.c_str(),
                size / 1048576.0, before / 1048576.0, limit / 1048576.0);
            return nullptr;
        }
    } while (!d.stats.buffer_bytes.compare_exchange_weak(before, before + size));

    void * data = buffer_malloc(size);
    if (data == nullptr) {
        d.stats.buffer_bytes -= size;
        GGML_LOG_ERROR("%s: the host has no %.2f MiB for a buffer\n", d.name.c_str(), size / 1048576.0);
        return nullptr;
    }
    uint64_t peak = d.stats.buffer_bytes_peak.load();
    while (peak < before + size && !d.stats.buffer_bytes_peak.compare_exchange_weak(peak, before + size)) {
    }
    return ggml_backend_buffer_init(buft, buffer_interface, new memory_block{ d, data, size }, size);
}

size_t buft_get_alignment(ggml_backend_buffer_type_t) {
    return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type());
}

bool buft_is_host(ggml_backend_buffer_type_t) {
    return false;
}

} // namespace

const ggml_backend_buffer_type_i buft_interface = {
    /* .get_name       = */ buft_get_name,
    /* .alloc_buffer   = */ buft_alloc_buffer,
    /* .get_alignment  = */ buft_get_alignment,
    /* .get_max_size   = */ nullptr,
    /* .get_alloc_size = */ nullptr,
    /* .is_host        = */ buft_is_host,
};

bool is_vcpu(ggml_backend_buffer_t buffer) {
    return buffer != nullptr && buffer->buft->iface.get_name == buft_get_name;
}

namespace {

//
// streams
//

const char * backend_get_name(ggml_backend_t backend) {
    return stream_of(backend).dev.name.c_str();
}

void backend_free(ggml_backend_t backend) {
    stream & s = stream_of(backend);
    if (!in_child.load(std::memory_order_relaxed)) {
        s.dev.queue.wait(s.last_ticket.load());
        failure_ptr f = s.recover();
        if (f != nullptr && !f->delivered.exchange(true)) {
            GGML_LOG_ERROR("%s\n", f->message.c_str());
        }
        if (s.mates != nullptr) {
            std::lock_guard<std::mutex> lock(s.mates->mutex);
            auto & m = s.mates->members;
            m.erase(std::remove(m.begin(), m.end(), &s), m.end());
        }
    }
    delete &s;
    delete backend;
}

// Small pieces are copied when they are queued; the others must stay until the stream is synchronized.
constexpr size_t COPY_AT_ONCE = 64 * 1024;

void set_2d_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    stream & s = stream_of(backend);
    if (!usable_or_report(s.dev) || size == 0 || n == 0) {
        return;
    }
    char * to = (char *) tensor->data + offset;
    std::vector<char> copy;
    if (size * n <= COPY_AT_ONCE) {
        copy.resize(size * n);
        move(copy.data(), size, data, stride_data, size, n);
        stride_data = size;
    }
    enqueue(s, [&d = s.dev, to, data, size, n, stride_tensor, stride_data, copy = std::move(copy),
            ticket = trace::enqueued(PGG_TRACE_SET, &s.dev.dev, size * n)] {
        const trace::timed timed(ticket);
        move(to, stride_tensor, copy.empty() ? data : copy.data(), stride_data, size, n);
        count(d.stats.sets, d.stats.set_bytes, size * n);
    });
}

void get_2d_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    stream & s = stream_of(backend);
    if (!usable_or_report(s.dev)) {
        return;
    }
    const char * from = (const char *) tensor->data + offset;
    enqueue(s, [&d = s.dev, from, data, size, n, stride_tensor, stride_data,
            ticket = trace::enqueued(PGG_TRACE_GET, &s.dev.dev, size * n)] {
        const trace::timed timed(ticket);
        move(data, stride_data, from, stride_tensor, size, n);
        count(d.stats.gets, d.stats.get_bytes, size * n);
    });
}

void set_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    set_2d_async(backend, tensor, data, offset, size, 1, size, size);
}

void get_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    get_2d_async(backend, tensor, data, offset, size, 1, size, size);
}

// A copy between two queues: the source says that it is ready and waits for the end, the destination copies.
struct meeting {
    rising      stage;
    failure_ptr failed; // written by the source before it is ready
    int64_t     began = 0; // by the destination before it is done, for traces
};

// for traces, the two sides of a copy; both NULL when nobody listens
struct copy_tickets {
    trace::ticket source, destination;

    copy_tickets(device & from, device & to, size_t bytes) {
        source      = trace::enqueued(PGG_TRACE_SEND, &from.dev, bytes);
        destination = trace::enqueued(PGG_TRACE_COPY, &to.dev, bytes);
        if (source != nullptr && destination != nullptr) {
            source->e.join  = destination->e.join  = trace::next_number();
            destination->e.moved = (int64_t) bytes; // who reads moves
            source->e.moved      = 0;
            source->e.peer      = &to.dev;
            destination->e.peer = &from.dev;
        }
    }
};

bool cpy_async(ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor * src, ggml_tensor * dst) {
    if (!is_vcpu(backend_src) || !is_vcpu(backend_dst)) {
        return false; // ggml then synchronizes both sides and copies through the host
    }
    stream & a = stream_of(backend_src);
    stream & b = stream_of(backend_dst);
    ggml_backend_buffer_t from = buffer_of(src);
    ggml_backend_buffer_t to   = buffer_of(dst);
    int kind = 0;
    std::string why;
    if (!is_vcpu(from) || !is_vcpu(to) || &dev_of(from) != &a.dev || &dev_of(to) != &b.dev ||
            !usable(a.dev, &kind, &why) || !usable(b.dev, &kind, &why)) {
        return false;
    }
    const auto copy = [&d = b.dev, x = src->data, y = dst->data, size = ggml_nbytes(src)] {
        memcpy(y, x, size);
        count(d.stats.copies, d.stats.copy_bytes, size);
    };
    if (&a.dev == &b.dev) {
        enqueue(b, [&a, &b, copy, ticket = trace::enqueued(PGG_TRACE_COPY, &b.dev.dev, ggml_nbytes(src))] {
            const trace::timed timed(ticket);
            if (failure_ptr f = a.failed()) {
                b.fail(f);
            } else {
                copy();
            }
        });
        a.queued(b.last_ticket.load());
        return true;
    }
    auto m = std::make_shared<meeting>();
    copy_tickets tickets(a.dev, b.dev, ggml_nbytes(src));
    auto source = make_work([&a, m, ticket = std::move(tickets.source)] {
        const int64_t t0 = ticket != nullptr ? trace::now() : 0;
        m->failed = a.failed();
        m->stage.add();
        m->stage.wait(2);
        if (ticket != nullptr && m->began != 0) {
            ticket->done(PGG_TRACE_WAIT, t0, m->began, ticket->e.peer);
            ticket->done(m->began, trace::now());
        }
    });
    auto destination = make_work([&b, m, copy, ticket = std::move(tickets.destination)] {
        const int64_t t0 = ticket != nullptr ? trace::now() : 0;
        m->stage.wait(1);
        m->began = ticket != nullptr ? trace::now() : 0;
        if (m->failed != nullptr) {
            b.fail(m->failed);
        } else if (b.failed() == nullptr && !closing.load(std::memory_order_relaxed)) {
            copy();
        }
        if (ticket != nullptr) {
            ticket->done(PGG_TRACE_WAIT, t0, m->began, ticket->e.peer);
            ticket->done(m->began, trace::now());
        }
        m->stage.add();
    });
    std::lock_guard<std::mutex> lock(several());
    a.queued(a.dev.queue.push(std::move(source)));
    b.queued(b.dev.queue.push(std::move(destination)));
    return true;
}

} // namespace

failure_ptr take_failure(stream & s) {
    failure_ptr f = s.recover();
    if (f == nullptr) {
        return nullptr;
    }
    failure_ptr first = f->delivered.exchange(true) ? nullptr : f;
    if (s.mates != nullptr) {
        std::lock_guard<std::mutex> lock(s.mates->mutex);
        for (stream * other : s.mates->members) {
            other->dev.queue.wait(other->last_ticket.load()); // it may be about to fail
            failure_ptr g = other->recover();
            if (g != nullptr && !g->delivered.exchange(true) && first == nullptr) {
                first = g;
            }
        }
    }
    return first;
}

namespace {

// Somebody who waits was interrupted (Ctrl-C): what is queued on any device ends early. The next graph clears it.
std::atomic<bool> interrupted{false};

void synchronize(ggml_backend_t backend) {
    stream & s = stream_of(backend);
    if (!usable_or_report(s.dev)) {
        return;
    }
    s.dev.queue.wait(s.last_ticket.load(), [] {
        if (pgg_interrupt_poll()) {
            interrupted.store(true);
        }
    });
    if (failure_ptr f = take_failure(s)) {
        report(f->kind, f->message);
    }
}

bool should_stop(void * data) {
    stream & s = *(stream *) data;
    if (closing.load(std::memory_order_relaxed) || interrupted.load(std::memory_order_relaxed)) {
        return true;
    }
    ggml_abort_callback callback = s.abort_callback.load(std::memory_order_relaxed);
    return callback != nullptr && callback(s.abort_data.load(std::memory_order_relaxed));
}

// On the device's thread: the CPU backend, with a pool of as many threads as the device has now.
ggml_backend_t cpu_of(device & d) {
    if (d.cpu == nullptr) {
        d.cpu = ggml_backend_cpu_init();
    }
    const int n = d.n_threads.load();
    if (d.pool_threads != n || (n > 1 && d.pool == nullptr)) {
        ggml_backend_cpu_set_threadpool(d.cpu, nullptr);
        ggml_threadpool_free(d.pool);
        d.pool = nullptr;
        ggml_threadpool_params params = ggml_threadpool_params_default(n);
        params.poll = 10; // the default would keep the cores busy for long after a graph
        d.pool = n > 1 ? ggml_threadpool_new(&params) : nullptr;
        d.pool_threads = n;
        ggml_backend_cpu_set_threadpool(d.cpu, d.pool);
    }
    ggml_backend_cpu_set_n_threads(d.cpu, n);
    return d.cpu;
}

void compute(stream & s, graph_copy & copy, const trace::ticket & ticket) {
    device & d = s.dev;
    const trace::mute mute; // what runs below is this graph
    ggml_backend_t cpu = cpu_of(d);
    ggml_backend_cpu_set_abort_callback(cpu, should_stop, &s);
    if (interrupted.load(std::memory_order_relaxed)) {
        throw error(PGG_ERROR_CALLBACK, "the computation was interrupted");
    }

    const auto t0 = std::chrono::steady_clock::now();
    const ggml_status status = ggml_backend_graph_compute(cpu, copy.get());
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - t0).count();
    d.stats.busy_us.fetch_add(us, std::memory_order_relaxed);

    if (status == GGML_STATUS_ABORTED) {
        throw error(PGG_ERROR_CALLBACK, "the computation was ended by its abort callback");
    }
    if (status != GGML_STATUS_SUCCESS) {
        const int kind = pgg_error_pending();
        throw error(kind != PGG_ERROR_NONE ? kind : PGG_ERROR_DEVICE,
            kind != PGG_ERROR_NONE ? pgg_error_message() : ggml_status_to_string(status));
    }
    uint64_t n = 0;
    for (int i = 0; i < copy.get()->n_nodes; i++) {
        const ggml_tensor * node = copy.get()->nodes[i];
        n += (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_op_is_empty(node->op);
    }
    count(d.stats.graph_computes, d.stats.nodes, n);
    if (ticket != nullptr) {
        ticket->e.computed = (int32_t) n;
    }
}

std::unique_ptr<graph_copy> spare_copy(device & d) {
    std::lock_guard<std::mutex> lock(d.spare_mutex);
    if (d.spare.empty()) {
        return std::make_unique<graph_copy>();
    }
    auto copy = std::move(d.spare.back());
    d.spare.pop_back();
    return copy;
}

void keep_spare(device & d, std::unique_ptr<graph_copy> copy) {
    std::lock_guard<std::mutex> lock(d.spare_mutex);
    if (d.spare.size() < 64) {
        d.spare.push_back(std::move(copy));
    }
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * cgraph) {
    stream & s = stream_of(backend);
    int kind = 0;
    std::string why;
    if (!usable(s.dev, &kind, &why)) {
        pgg_error_set(kind, why.c_str());
        GGML_LOG_ERROR("%s\n", why.c_str());
        return GGML_STATUS_FAILED;
    }
    if (failure_ptr f = take_failure(s)) {
        pgg_error_set(f->kind, f->message.c_str());
        GGML_LOG_ERROR("%s\n", f->message.c_str());
        return GGML_STATUS_FAILED;
    }
    if (cgraph->n_nodes == 0) {
        return GGML_STATUS_SUCCESS;
    }
    interrupted.store(false);
    std::unique_ptr<graph_copy> copy = spare_copy(s.dev);
    copy->assign(cgraph);
    enqueue(s, [&s, copy = std::move(copy), ticket = trace::enqueued(&s.dev.dev, cgraph)]() mutable {
        const trace::timed timed(ticket);
        compute(s, *copy, ticket);
        keep_spare(s.dev, std::move(copy));
    });
    return GGML_STATUS_SUCCESS;
}

} // namespace

const ggml_backend_i backend_interface = {
    /* .get_name            = */ backend_get_name,
    /* .free                = */ backend_free,
    /* .set_tensor_async    = */ set_async,
    /* .get_tensor_async    = */ get_async,
    /* .set_tensor_2d_async = */ set_2d_async,
    /* .get_tensor_2d_async = */ get_2d_async,
    /* .cpy_tensor_async    = */ cpy_async,
    /* .synchronize         = */ synchronize,
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ graph_compute,
    /* .event_record        = */ nullptr,
    /* .event_wait          = */ nullptr,
    /* .graph_optimize      = */ nullptr,
};

bool is_vcpu(ggml_backend_t backend) {
    return backend != nullptr && backend->iface.get_name == backend_get_name;
}

} // namespace pgg::vcpu
