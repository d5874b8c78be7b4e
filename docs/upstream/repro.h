// What the reproducers share: devices for the meta backend that need no GPU, and a graph computed twice, once on the CPU
// and once over the devices. One program per bug; each prints one line of what happened (or dies, which run.sh reports).
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

//
// a device whose memory does not call itself host memory (a GPU's does not either), computed by ggml's CPU backend
//

struct fake_device {
    ggml_backend_device      dev;
    ggml_backend_buffer_type buft;
    std::string              name;
    ggml_tensor *            last = nullptr; // the node that this device computed last
};

inline int device_memory_fill = 0; // new memory of a real device holds anything; 0xff is NaN in float32

inline fake_device * device_of(ggml_backend_dev_t dev) { return (fake_device *) dev->context; }

inline ggml_backend_buffer_t fake_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    void * memory = aligned_alloc(64, (size + 64)/64*64);
    memset(memory, device_memory_fill, size);
    ggml_backend_buffer_i iface = {};
    iface.free_buffer   = [](ggml_backend_buffer_t b) { free(b->context); };
    iface.get_base      = [](ggml_backend_buffer_t b) { return b->context; };
    iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, uint8_t v, size_t o, size_t n) { memset((char *) t->data + o, v, n); };
    iface.set_tensor    = [](ggml_backend_buffer_t, ggml_tensor * t, const void * p, size_t o, size_t n) { memcpy((char *) t->data + o, p, n); };
    iface.get_tensor    = [](ggml_backend_buffer_t, const ggml_tensor * t, void * p, size_t o, size_t n) { memcpy(p, (const char *) t->data + o, n); };
    iface.clear         = [](ggml_backend_buffer_t b, uint8_t v) { memset(b->context, v, b->size); };
    return ggml_backend_buffer_init(buft, iface, memory, size);
}

inline ggml_backend_t fake_init(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 'r', 'e', 'p', 'r', 'o' };
    ggml_backend * b = new ggml_backend{ &guid, {}, dev, ggml_backend_cpu_init() };
    ggml_backend_cpu_set_n_threads((ggml_backend_t) b->context, 1);
    b->iface.get_name      = [](ggml_backend_t b) { return device_of(b->device)->name.c_str(); };
    b->iface.free          = [](ggml_backend_t b) { ggml_backend_free((ggml_backend_t) b->context); delete b; };
    b->iface.graph_compute = [](ggml_backend_t b, ggml_cgraph * g) {
        device_of(b->device)->last = ggml_graph_n_nodes(g) > 0 ? ggml_graph_node(g, -1) : nullptr;
        return ggml_backend_graph_compute((ggml_backend_t) b->context, g);
    };
    return b;
}

inline std::vector<fake_device *> make_devices(size_t n) {
    static ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, {}, nullptr };
    reg.iface.get_name = [](ggml_backend_reg_t) { return "Fake"; };
    std::vector<fake_device *> out;
    for (size_t j = 0; j < n; j++) {
        fake_device * d = new fake_device{ {}, {}, "Fake" + std::to_string(j) };
        d->dev.reg                    = &reg;
        d->dev.context                = d;
        d->dev.iface.get_name         = [](ggml_backend_dev_t dev) { return device_of(dev)->name.c_str(); };
        d->dev.iface.get_description  = d->dev.iface.get_name;
        d->dev.iface.get_memory       = [](ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = (size_t) 1 << 30; };
        d->dev.iface.get_type         = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
        d->dev.iface.get_props        = [](ggml_backend_dev_t dev, ggml_backend_dev_props * p) {
            *p = {};
            p->name = p->description = device_of(dev)->name.c_str();
            p->type = GGML_BACKEND_DEVICE_TYPE_GPU;
        };
        d->dev.iface.init_backend     = fake_init;
        d->dev.iface.get_buffer_type  = [](ggml_backend_dev_t dev) { return &device_of(dev)->buft; };
        d->dev.iface.supports_op      = [](ggml_backend_dev_t, const ggml_tensor *) { return true; };
        d->dev.iface.supports_buft    = [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return buft->device == dev; };
        d->buft.device                = &d->dev;
        d->buft.iface.get_name        = [](ggml_backend_buffer_type_t b) { return device_of(b->device)->name.c_str(); };
        d->buft.iface.alloc_buffer    = fake_alloc;
        d->buft.iface.get_alignment   = [](ggml_backend_buffer_type_t) { return (size_t) 64; };
        d->buft.iface.is_host         = [](ggml_backend_buffer_type_t) { return false; };
        out.push_back(d);
    }
    return out;
}

//
// a graph with the split of its leaves
//

struct split {
    int                  axis;  // 0 to 3, or GGML_BACKEND_SPLIT_AXIS_PARTIAL
    std::vector<int64_t> ne;    // per device; for several segments one behind the other
};

struct problem {
    std::map<std::string, split>                splits;      // leaves that are not named are whole on every device
    std::map<std::string, std::vector<int32_t>> ints;        // values of the integer leaves
    size_t                                      n_devices = 2;
    ggml_context * weights = nullptr;
    ggml_context * ctx     = nullptr;
    std::vector<fake_device *> devices;
    ggml_backend_dev_t         meta    = nullptr;
    ggml_backend_t             backend = nullptr;
    ggml_backend_buffer_t      buffer  = nullptr;

    problem() { renew(); }

    void renew() { // contexts are left to the end of the program, as all else is
        weights = ggml_init({ 256*ggml_tensor_overhead(), nullptr, true });
        ctx     = ggml_init({ 256*ggml_tensor_overhead() + 4*ggml_graph_overhead(), nullptr, true });
    }

    ggml_tensor * leaf(const char * name, ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, int64_t n3 = 1) {
        return ggml_set_name(ggml_new_tensor_4d(weights, type, n0, n1, n2, n3), name);
    }
};

inline ggml_backend_meta_split_state state_of(const ggml_tensor * t, void * ud) {
    const problem & p = *(const problem *) ud;
    ggml_backend_meta_split_state s = {};
    s.axis       = GGML_BACKEND_SPLIT_AXIS_MIRRORED;
    s.n_segments = 1;
    s.nr[0]      = 1;
    auto it = p.splits.find(t->name);
    if (it != p.splits.end()) {
        s.axis = (ggml_backend_meta_split_axis) it->second.axis;
        for (size_t i = 0; i < it->second.ne.size(); i++) {
            s.ne[i] = it->second.ne[i];
            s.nr[i/p.n_devices] = 1;
            s.n_segments = 1 + i/p.n_devices;
        }
    }
    return s;
}

// a backend, memory and values for the leaves: on the CPU, or on a meta device
inline void place_leaves(problem & p, bool on_meta) {
    if (on_meta) {
        if (p.devices.empty()) {
            p.devices = make_devices(p.n_devices);
        }
        std::vector<ggml_backend_dev_t> devs;
        for (fake_device * d : p.devices) {
            devs.push_back(&d->dev);
        }
        p.meta    = ggml_backend_meta_device(devs.data(), devs.size(), state_of, &p);
        p.backend = ggml_backend_dev_init(p.meta, nullptr);
    } else {
        p.backend = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(p.backend, 1);
    }
    p.buffer = ggml_backend_alloc_ctx_tensors(p.weights, p.backend);
    ggml_backend_buffer_set_usage(p.buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (ggml_tensor * t = ggml_get_first_tensor(p.weights); t; t = ggml_get_next_tensor(p.weights, t)) {
        const int64_t n = ggml_nelements(t);
        if (p.ints.count(t->name)) {
            ggml_backend_tensor_set(t, p.ints[t->name].data(), 0, ggml_nbytes(t));
            continue;
        }
        std::vector<float> x(n);
        uint64_t seed = 1;
        for (const char * c = t->name; *c; c++) {
            seed = seed*31 + *c;
        }
        for (float & f : x) {
            seed = seed*6364136223846793005ull + 1442695040888963407ull;
            f = (float) (seed >> 40)/(1 << 23) - 1.0f;
        }
        if (t->type == GGML_TYPE_F16) {
            std::vector<ggml_fp16_t> h(n);
            ggml_fp32_to_fp16_row(x.data(), h.data(), n);
            ggml_backend_tensor_set(t, h.data(), 0, ggml_nbytes(t));
        } else {
            ggml_backend_tensor_set(t, x.data(), 0, ggml_nbytes(t));
        }
    }
}

inline std::vector<float> read(const ggml_tensor * t) {
    const int64_t n = ggml_nelements(t);
    std::vector<float> x(n);
    if (t->type == GGML_TYPE_I32) {
        std::vector<int32_t> i(n);
        ggml_backend_tensor_get(t, i.data(), 0, n*sizeof(int32_t));
        x.assign(i.begin(), i.end());
    } else {
        ggml_backend_tensor_get(t, x.data(), 0, n*sizeof(float));
    }
    return x;
}

inline ggml_tensor * same_view(problem & p, ggml_tensor * t) { return ggml_view_2d(p.ctx, t, t->ne[0], t->ne[1], t->nb[1], 0); }

using builder = std::function<ggml_tensor *(problem &)>; // makes leaves and nodes, returns the last node

// what keep() is given is the problem after the run; its tensors are still there
inline std::vector<float> compute(problem p, const builder & build, bool on_meta, const std::function<void(problem &)> & keep = nullptr) {
    p.renew();
    ggml_tensor * out = build(p);
    ggml_cgraph * g   = ggml_new_graph(p.ctx);
    ggml_build_forward_expand(g, out);
    place_leaves(p, on_meta);
    ggml_gallocr_t alloc = ggml_gallocr_new(ggml_backend_get_default_buffer_type(p.backend));
    ggml_gallocr_alloc_graph(alloc, g);
    const ggml_status status = ggml_backend_graph_compute(p.backend, g);
    if (status != GGML_STATUS_SUCCESS) {
        printf("graph_compute returned %d\n", (int) status);
        exit(1);
    }
    if (keep) {
        keep(p);
        return {};
    }
    return read(out);
}

inline double nmse(const std::vector<float> & want, const std::vector<float> & have) {
    double d = 0, n = 0;
    for (size_t i = 0; i < want.size(); i++) {
        d += ((double) want[i] - have[i])*((double) want[i] - have[i]);
        n += (double) want[i]*want[i];
    }
    return d/n;
}

inline const char * verdict(double e) { return e < 1e-6 ? "right" : "WRONG"; } // NaN is wrong

inline void compare(const char * what, const problem & p, const builder & build) {
    const double e = nmse(compute(p, build, false), compute(p, build, true));
    printf("%s: %s, NMSE %.2g\n", what, verdict(e), e);
    fflush(stdout);
}
