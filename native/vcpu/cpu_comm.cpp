// The communicator of virtual CPU devices: an all-reduce over shared memory. See cpu_backend.cpp.

#include "vcpu/vcpu.h"

#include <algorithm>
#include <cstring>

namespace pgg::vcpu {
namespace {

struct communicator {
    std::vector<stream *> streams;
};

struct reduction {
    ggml_type                type;
    int64_t                  n;
    size_t                   bytes;
    std::vector<void *>      data;
    std::vector<bool>        counts; // false: no valid data, counts as zero whatever it holds
    std::vector<failure_ptr> failed;
    rising                   stage;

    // for traces: empty when nobody listens
    std::vector<trace::ticket> tickets;
    std::vector<int64_t>       arrived;

    // slices begin at cache lines
    int64_t begin_of(size_t j) const {
        const int64_t k = data.size();
        return j == 0 ? 0 : (int64_t) j == k ? n : std::min<int64_t>(n, (n * (int64_t) j / k + 31) / 32 * 32);
    }
};

void read_floats(const reduction & r, size_t j, int64_t first, int64_t n, float * to) {
    switch (r.type) {
        case GGML_TYPE_F32:  memcpy(to, (const float *) r.data[j] + first, n*sizeof(float)); break;
        case GGML_TYPE_F16:  ggml_fp16_to_fp32_row((const ggml_fp16_t *) r.data[j] + first, to, n); break;
        default:             ggml_bf16_to_fp32_row((const ggml_bf16_t *) r.data[j] + first, to, n); break;
    }
}

void write_floats(const reduction & r, size_t j, int64_t first, int64_t n, const float * from) {
    switch (r.type) {
        case GGML_TYPE_F32:  memcpy((float *) r.data[j] + first, from, n*sizeof(float)); break;
        case GGML_TYPE_F16:  ggml_fp32_to_fp16_row(from, (ggml_fp16_t *) r.data[j] + first, n); break;
        default:             ggml_fp32_to_bf16_row(from, (ggml_bf16_t *) r.data[j] + first, n); break;
    }
}

// Sums elements [first, last) over the devices, in the order of the devices whoever does it, and gives all the result.
void reduce_slice(const reduction & r, int64_t first, int64_t last) {
    constexpr int64_t BLOCK = 1024;
    float sum[BLOCK];
    float one[BLOCK];
    for (int64_t i = first; i < last; i += BLOCK) {
        const int64_t n = std::min(BLOCK, last - i);
        bool any = false;
        for (size_t j = 0; j < r.data.size(); j++) {
            if (!r.counts[j]) {
                continue;
            }
            if (!any) {
                read_floats(r, j, i, n, sum);
                any = true;
                continue;
            }
            const float * x = one;
            if (r.type == GGML_TYPE_F32) {
                x = (const float *) r.data[j] + i;
            } else {
                read_floats(r, j, i, n, one);
            }
            for (int64_t k = 0; k < n; k++) {
                sum[k] += x[k];
            }
        }
        if (!any) {
            memset(sum, 0, sizeof(sum));
        }
        for (size_t j = 0; j < r.data.size(); j++) {
            write_floats(r, j, i, n, sum);
        }
    }
}

// What device j reads from others and writes to others, in bytes.
int64_t moved_by(const reduction & r, size_t j) {
    const size_t others = std::count(r.counts.begin(), r.counts.end(), true) - (r.counts[j] ? 1 : 0);
    const int64_t slice = (r.begin_of(j + 1) - r.begin_of(j)) * (int64_t) ggml_type_size(r.type);
    return slice * (int64_t) (others + r.data.size() - 1);
}

// For traces: the device's time in a sum, which begins and ends with waiting for the others.
struct traced_sum {
    const reduction & r;
    const size_t      j;
    trace::queued *   t;
    int64_t           all_here = 0, summed = 0;

    traced_sum(reduction & r, size_t j) : r(r), j(j), t(r.tickets.empty() ? nullptr : r.tickets[j].get()) {
        if (t != nullptr) {
            r.arrived[j] = trace::now();
        }
    }
    void mark(int64_t & when) const {
        if (t != nullptr) {
            when = trace::now();
        }
    }
    ~traced_sum() {
        if (t == nullptr) {
            return;
        }
        const size_t last = std::max_element(r.arrived.begin(), r.arrived.end()) - r.arrived.begin();
        ggml_backend_dev_t late = r.tickets[last]->e.device;
        t->done(PGG_TRACE_WAIT, r.arrived[j], all_here, last == j ? nullptr : late);
        t->done(all_here, summed);
        t->done(PGG_TRACE_WAIT, summed, trace::now(), nullptr);
    }
};

void reduce_on(stream & s, reduction & r, size_t j) {
    const size_t n_devs = r.data.size();
    traced_sum traced(r, j);
    r.failed[j] = s.failed();
    r.stage.add();
    r.stage.wait(n_devs);
    traced.mark(traced.all_here);

    const auto f = std::find_if(r.failed.begin(), r.failed.end(), [](const failure_ptr & f) { return f != nullptr; });
    if (f != r.failed.end()) {
        s.fail(*f);
    } else if (!closing.load(std::memory_order_relaxed)) {
        reduce_slice(r, r.begin_of(j), r.begin_of(j + 1));
        count(s.dev.stats.allreduces, s.dev.stats.allreduce_bytes, r.bytes);
    }
    traced.mark(traced.summed);
    r.stage.add();
    r.stage.wait(2*n_devs);
}

void note_sum(reduction & r, const std::vector<stream *> & streams) {
    const uint64_t join = trace::next_number();
    for (size_t j = 0; j < streams.size(); j++) {
        trace::ticket t = trace::enqueued(PGG_TRACE_ALLREDUCE, &streams[j]->dev.dev, r.bytes);
        if (t == nullptr) {
            r.tickets.clear();
            return;
        }
        t->e.join  = join;
        t->e.moved = moved_by(r, j);
        r.tickets.push_back(std::move(t));
    }
    r.arrived.resize(streams.size());
}

} // namespace

void * comm_init(ggml_backend_t * backends, size_t n) {
    std::vector<stream *> streams;
    for (size_t i = 0; i < n; i++) {
        if (!is_vcpu(backends[i])) {
            return nullptr;
        }
        stream * s = &stream_of(backends[i]);
        for (const stream * other : streams) {
            if (&other->dev == &s->dev) {
                return nullptr;
            }
        }
        streams.push_back(s);
    }
    if (n < 2) {
        return nullptr;
    }
    auto mates = std::make_shared<team>();
    mates->members = streams;
    for (stream * s : streams) {
        s->mates = mates;
    }
    return new communicator{ std::move(streams) };
}

void comm_free(void * comm) {
    delete (communicator *) comm;
}

bool comm_allreduce_tensor(void * comm, ggml_tensor ** tensors) {
    const std::vector<stream *> & streams = ((communicator *) comm)->streams;
    const size_t n = streams.size();
    const ggml_tensor * t0 = tensors[0];
    if (t0->type != GGML_TYPE_F32 && t0->type != GGML_TYPE_F16 && t0->type != GGML_TYPE_BF16) {
        return false;
    }
    auto r = std::make_shared<reduction>();
    for (size_t j = 0; j < n; j++) {
        const ggml_tensor * t = tensors[j];
        ggml_backend_buffer_t buffer = buffer_of(t);
        int kind = 0;
        std::string why;
        if (!ggml_is_contiguous(t) || t->type != t0->type || !ggml_are_same_shape(t, t0) || !is_vcpu(buffer) ||
                &dev_of(buffer) != &streams[j]->dev || !usable(streams[j]->dev, &kind, &why)) {
            return false;
        }
        r->data.push_back(t->data);
        r->counts.push_back((t->flags & GGML_TENSOR_FLAG_COMPUTE) != 0);
    }
    r->type  = t0->type;
    r->n     = ggml_nelements(t0);
    r->bytes = ggml_nbytes(t0);
    r->failed.resize(n);
    if (trace::any()) {
        note_sum(*r, streams);
    }

    std::vector<std::unique_ptr<work_item>> items;
    for (size_t j = 0; j < n; j++) {
        items.push_back(make_work([s = streams[j], r, j] { reduce_on(*s, *r, j); }));
    }
    std::lock_guard<std::mutex> lock(several());
    for (size_t j = 0; j < n; j++) {
        streams[j]->queued(streams[j]->dev.queue.push(std::move(items[j])));
    }
    return true;
}

} // namespace pgg::vcpu
