// Virtual CPU devices against the CPU backend, alone and several at once.
#include "check.h"

#include "ggml-backend-impl.h"

#include <atomic>
#include <chrono>
#include <thread>

#if !defined(_WIN32)
#    include <sys/wait.h>
#endif

namespace {

using clock_type = std::chrono::steady_clock;

ggml_backend_t vcpu(int index, int n_threads = 1) {
    return ggml_backend_dev_init(pgg_vcpu_device(index, n_threads, 0), nullptr);
}

// a small network with a fused pair (RMS_NORM, MUL), a matrix product, views and a row-wise op
struct mlp : net {
    ggml_tensor * x, * w, * g, * y;
    mlp(ggml_backend_t backend, uint32_t seed) {
        x = tensor(GGML_TYPE_F32, 64, 7);
        w = tensor(GGML_TYPE_F32, 64, 48);
        g = tensor(GGML_TYPE_F32, 64);
        ggml_tensor * h = ggml_mul(ctx, ggml_rms_norm(ctx, x, 1e-5f), g);
        h = ggml_silu(ctx, ggml_mul_mat(ctx, w, h));
        h = ggml_soft_max(ctx, ggml_cont(ctx, ggml_transpose(ctx, h)));
        y = ggml_add(ctx, h, h);
        add(y);
        alloc(backend);
        set(x, noise(64 * 7, seed));
        set(w, noise(64 * 48, seed + 1));
        set(g, noise(64, seed + 2));
    }
};

std::vector<float> on_cpu(uint32_t seed, int n_threads = 1) {
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, n_threads);
    std::vector<float> out;
    {
        mlp m(cpu, seed);
        CHECK(ggml_backend_graph_compute(cpu, m.graph) == GGML_STATUS_SUCCESS);
        out = get(m.y);
    }
    ggml_backend_free(cpu);
    return out;
}

void device_properties() {
    ggml_backend_dev_t dev = pgg_vcpu_device(0, 0, 0);
    ggml_backend_dev_props p;
    ggml_backend_dev_get_props(dev, &p);
    CHECK(std::string(p.name) == "VCPU0");
    CHECK(p.type == GGML_BACKEND_DEVICE_TYPE_GPU);
    CHECK(p.caps.async && !p.caps.host_buffer && !p.caps.buffer_from_host_ptr && !p.caps.events);
    CHECK(p.memory_total > 0 && p.memory_free <= p.memory_total);
    CHECK(pgg_vcpu_device(0, 0, 0) == dev);
    CHECK(pgg_vcpu_is(dev));
    CHECK(!pgg_vcpu_is(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0)));
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    CHECK(!ggml_backend_buft_is_host(buft));
    CHECK(std::string(ggml_backend_buft_name(buft)) == "VCPU0");
    CHECK(ggml_backend_dev_supports_buft(dev, buft));
    CHECK(!ggml_backend_dev_supports_buft(dev, ggml_backend_cpu_buffer_type()));
    CHECK(!ggml_backend_dev_supports_buft(dev, ggml_backend_dev_buffer_type(pgg_vcpu_device(1, 0, 0))));
    CHECK(ggml_backend_reg_by_name("VCPU") == nullptr || getenv("PYGGML_VCPU") != nullptr);
    CHECK(pgg_vcpu_device(64, 0, 0) == nullptr);
    CHECK(pgg_error_pending() == PGG_ERROR_ARGUMENT);
}

void equals_cpu() {
    for (int threads : { 1, 2, 3 }) {
        ggml_backend_t b = vcpu(0, threads);
        mlp m(b, 11);
        CHECK(ggml_backend_graph_compute(b, m.graph) == GGML_STATUS_SUCCESS);
        CHECK(get(m.y) == on_cpu(11, threads)); // bit-equal
        ggml_backend_free(b);
    }
    pgg_vcpu_set_threads(pgg_vcpu_device(0, 0, 0), 1);
}

// The same tensors may be changed as soon as graph_compute has returned: the queue has its own copy of the graph.
void graph_is_copied() {
    ggml_backend_t b = vcpu(0);
    {
        mlp m(b, 12);
        ggml_backend_graph_compute_async(b, m.graph);
        for (int i = 0; i < ggml_graph_n_nodes(m.graph); i++) {
            ggml_tensor * node = ggml_graph_node(m.graph, i);
            if (node != m.y) {
                node->op = GGML_OP_NONE;
                node->data = nullptr;
            }
        }
        void * data = m.y->data;
        m.y->op = GGML_OP_NONE;
        m.y->src[0] = nullptr;
        ggml_backend_synchronize(b);
        m.y->data = data;
        CHECK(get(m.y) == on_cpu(12));
    }
    ggml_backend_free(b);
}

std::atomic<int> inside{0}, both{0};

void meet(ggml_tensor * dst, int, int, void *) {
    inside++;
    const auto until = clock_type::now() + std::chrono::seconds(10);
    while (inside.load() < 2 && clock_type::now() < until) {
        std::this_thread::yield();
    }
    both += inside.load() >= 2;
    *(float *) dst->data = 1.0f;
}

// Two kernels that wait for each other: they end only when both devices compute at the same time.
void concurrent() {
    inside = both = 0;
    ggml_backend_t a = vcpu(0), b = vcpu(1);
    {
        net na, nb;
        ggml_tensor * x[2];
        int k = 0;
        for (net * n : { &na, &nb }) {
            x[k] = ggml_custom_4d(n->ctx, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, meet, 1, nullptr);
            n->add(x[k]);
            n->alloc(k == 0 ? a : b);
            k++;
        }
        ggml_backend_graph_compute_async(a, na.graph);
        ggml_backend_graph_compute_async(b, nb.graph);
        ggml_backend_synchronize(a);
        ggml_backend_synchronize(b);
        CHECK(both == 2);
    }
    ggml_backend_free(a);
    ggml_backend_free(b);
}

struct comm {
    std::vector<ggml_backend_t> backends;
    ggml_backend_comm_allreduce_tensor_t reduce;
    void * ctx;
    explicit comm(int n) {
        ggml_backend_reg_t reg = pgg_vcpu_reg();
        for (int i = 0; i < n; i++) {
            backends.push_back(vcpu(i));
        }
        ctx = ((ggml_backend_comm_init_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_comm_init"))(backends.data(), n);
        reduce = (ggml_backend_comm_allreduce_tensor_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_comm_allreduce_tensor");
    }
    ~comm() {
        if (ctx != nullptr) {
            ((ggml_backend_comm_free_t) ggml_backend_reg_get_proc_address(pgg_vcpu_reg(), "ggml_backend_comm_free"))(ctx);
        }
        for (ggml_backend_t b : backends) {
            ggml_backend_free(b);
        }
    }
};

void allreduce() {
    for (int n : { 2, 3, 5 }) {
        for (int64_t size : { 1, 31, 32, 33, 1000, 4097 }) {
            for (int skip = -1; skip < n; skip++) {
                comm c(n);
                CHECK(c.ctx != nullptr);
                std::vector<std::vector<float>> in;
                std::vector<net> nets(n);
                std::vector<ggml_tensor *> t;
                for (int i = 0; i < n; i++) {
                    t.push_back(nets[i].tensor(GGML_TYPE_F32, size));
                    nets[i].alloc(c.backends[i]);
                    in.push_back(noise(size, 100 * n + i, 1.0f + i));
                    t[i]->flags |= GGML_TENSOR_FLAG_COMPUTE;
                    if (i == skip) {
                        t[i]->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
                        in[i].assign(size, NAN);
                    }
                    set(t[i], in[i]);
                    pgg_vcpu_stats_reset(c.backends[i]->device);
                }
                CHECK(c.reduce(c.ctx, t.data()));
                std::vector<float> sum(size);
                for (int64_t k = 0; k < size; k++) {
                    bool any = false;
                    for (int i = 0; i < n; i++) {
                        if (i != skip) {
                            sum[k] = any ? sum[k] + in[i][k] : in[i][k];
                            any = true;
                        }
                    }
                }
                for (int i = 0; i < n; i++) {
                    CHECK(get(t[i]) == sum);
                    pgg_device_stats st;
                    pgg_vcpu_stats(c.backends[i]->device, &st);
                    CHECK(st.allreduces == 1);
                    CHECK(st.allreduce_bytes == size * sizeof(float));
                }
            }
        }
    }
    // nobody has data: zero, whatever is there
    comm c(2);
    std::vector<net> nets(2);
    std::vector<ggml_tensor *> t;
    for (int i = 0; i < 2; i++) {
        t.push_back(nets[i].tensor(GGML_TYPE_F32, 100));
        nets[i].alloc(c.backends[i]);
        set(t[i], std::vector<float>(100, NAN));
    }
    CHECK(c.reduce(c.ctx, t.data()));
    CHECK(get(t[0]) == std::vector<float>(100, 0.0f));
    CHECK(get(t[1]) == std::vector<float>(100, 0.0f));
}

void allreduce_half() {
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        comm c(2);
        std::vector<net> nets(2);
        std::vector<ggml_tensor *> t;
        std::vector<uint16_t> out[2];
        for (int i = 0; i < 2; i++) {
            t.push_back(nets[i].tensor(type, 77));
            nets[i].alloc(c.backends[i]);
            std::vector<uint16_t> bits(77);
            for (int k = 0; k < 77; k++) {
                const float f = (i + 1) * 0.25f * k; // 0.75 k is exact in both
                bits[k] = type == GGML_TYPE_F16 ? ggml_fp32_to_fp16(f) : ggml_fp32_to_bf16(f).bits;
            }
            ggml_backend_tensor_set(t[i], bits.data(), 0, 154);
            t[i]->flags |= GGML_TENSOR_FLAG_COMPUTE;
        }
        CHECK(c.reduce(c.ctx, t.data()));
        for (int i = 0; i < 2; i++) {
            out[i].resize(77);
            ggml_backend_tensor_get(t[i], out[i].data(), 0, 154);
            for (int k = 0; k < 77; k++) {
                const float f = type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(out[i][k]) : ggml_bf16_to_fp32({ out[i][k] });
                CHECK(f == 0.75f * k);
            }
        }
    }
    comm c(2);
    std::vector<net> nets(2);
    std::vector<ggml_tensor *> t;
    for (int i = 0; i < 2; i++) {
        t.push_back(nets[i].tensor(GGML_TYPE_I32, 4));
        nets[i].alloc(c.backends[i]);
    }
    CHECK(!c.reduce(c.ctx, t.data()));
}

void comm_wants_distinct_devices() {
    auto init = (ggml_backend_comm_init_t) ggml_backend_reg_get_proc_address(pgg_vcpu_reg(), "ggml_backend_comm_init");
    ggml_backend_t a = vcpu(0), a2 = vcpu(0), cpu = ggml_backend_cpu_init();
    ggml_backend_t same[2]    = { a, a2 };
    ggml_backend_t foreign[2] = { a, cpu };
    CHECK(init(same, 2) == nullptr);
    CHECK(init(foreign, 2) == nullptr);
    for (ggml_backend_t b : { a, a2, cpu }) {
        ggml_backend_free(b);
    }
}

// Copies in both directions, mixed with graphs that change what is copied; every step is checked at the end.
void copies_both_ways() {
    constexpr int N = 10000, STEPS = 500;
    ggml_backend_t a = vcpu(0), b = vcpu(1);
    {
        net na, nb;
        ggml_tensor * xa = na.tensor(GGML_TYPE_F32, N), * ya = na.tensor(GGML_TYPE_F32, N);
        ggml_tensor * xb = nb.tensor(GGML_TYPE_F32, N), * yb = nb.tensor(GGML_TYPE_F32, N);
        ggml_tensor * oa = ggml_scale_bias(na.ctx, xa, 1.0f, 1.0f), * ob = ggml_scale_bias(nb.ctx, xb, 1.0f, 2.0f);
        na.add(oa);
        nb.add(ob);
        na.alloc(a);
        nb.alloc(b);
        set(xa, std::vector<float>(N, 0.0f));
        set(xb, std::vector<float>(N, 0.0f));
        pgg_vcpu_stats_reset(a->device);
        for (int i = 0; i < STEPS; i++) {
            ggml_backend_graph_compute_async(a, na.graph);    // oa = xa + 1
            ggml_backend_graph_compute_async(b, nb.graph);    // ob = xb + 2
            ggml_backend_tensor_copy_async(a, b, oa, yb);
            ggml_backend_tensor_copy_async(b, a, ob, ya);
            ggml_backend_tensor_copy_async(a, a, ya, xa);     // within a device: xa = xb + 2
            ggml_backend_tensor_copy_async(b, b, yb, xb);     // xb = xa + 1
        }
        ggml_backend_synchronize(a);
        ggml_backend_synchronize(b);
        CHECK(get(xa) == std::vector<float>(N, STEPS / 2 * 3.0f));
        CHECK(get(xb) == std::vector<float>(N, STEPS / 2 * 3.0f));
        pgg_device_stats st;
        pgg_vcpu_stats(a->device, &st);
        CHECK(st.copies == 2 * STEPS);
        CHECK(st.copy_bytes == 2ull * STEPS * N * sizeof(float));
        CHECK(st.graph_computes == STEPS);
        CHECK(st.nodes == STEPS);
    }
    ggml_backend_free(a);
    ggml_backend_free(b);
}

// Several threads at once, each with backends of its own on the same devices, all-reducing and copying.
void many_threads() {
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; k++) {
        threads.emplace_back([k] {
            comm c(3);
            std::vector<net> nets(3);
            std::vector<ggml_tensor *> t;
            for (int i = 0; i < 3; i++) {
                t.push_back(nets[i].tensor(GGML_TYPE_F32, 500));
                nets[i].alloc(c.backends[i]);
                set(t[i], std::vector<float>(500, 1.0f + k));
                t[i]->flags |= GGML_TENSOR_FLAG_COMPUTE;
            }
            float expected = 1.0f + k;
            for (int step = 0; step < 15; step++) {
                CHECK(c.reduce(c.ctx, t.data()));
                expected *= 3.0f;
                ggml_backend_tensor_copy_async(c.backends[step % 3], c.backends[(step + 1) % 3], t[step % 3], t[(step + 1) % 3]);
            }
            for (int i = 0; i < 3; i++) {
                ggml_backend_synchronize(c.backends[i]);
                CHECK(get(t[i]) == std::vector<float>(500, expected));
            }
        });
    }
    for (std::thread & t : threads) {
        t.join();
    }
}

void copies_to_foreign_backends() {
    ggml_backend_t a = vcpu(0), cpu = ggml_backend_cpu_init();
    {
        net na, nc;
        ggml_tensor * x = na.tensor(GGML_TYPE_F32, 100), * y = nc.tensor(GGML_TYPE_F32, 100);
        ggml_tensor * xx = ggml_scale(na.ctx, x, 2.0f);
        na.add(xx);
        na.alloc(a);
        nc.alloc(cpu);
        set(x, noise(100, 5));
        ggml_backend_graph_compute_async(a, na.graph);
        ggml_backend_tensor_copy_async(a, cpu, xx, y);
        CHECK(get(y) == get(xx));
        ggml_backend_tensor_copy_async(cpu, a, y, x);
        CHECK(get(x) == get(y));
    }
    ggml_backend_free(a);
    ggml_backend_free(cpu);
}

void transfers_2d() {
    ggml_backend_t b = vcpu(0);
    {
        net n;
        ggml_tensor * t = n.tensor(GGML_TYPE_F32, 10, 6);
        n.alloc(b);
        const std::vector<float> x = noise(60, 3);
        std::vector<float> y(60), z(60), large(1 << 20);
        ggml_backend_tensor_set_2d_async(b, t, x.data(), 0, 20, 6, 40, 40);       // left halves
        ggml_backend_tensor_set_2d(t, x.data() + 5, 20, 20, 6, 40, 40);           // right halves
        ggml_backend_tensor_get_2d_async(b, t, y.data(), 0, 20, 6, 40, 40);
        ggml_backend_tensor_get_2d_async(b, t, y.data() + 5, 20, 20, 6, 40, 40);
        ggml_backend_synchronize(b);
        CHECK(y == x);
        CHECK(get(t) == x);
        ggml_backend_tensor_memset(t, 0, 40, 40);
        std::vector<float> expected = x;
        std::fill(expected.begin() + 10, expected.begin() + 20, 0.0f);
        CHECK(get(t) == expected);
        ggml_backend_buffer_clear(n.buffer, 0);
        CHECK(get(t) == std::vector<float>(60, 0.0f));
    }
    ggml_backend_free(b);
}

void memory_limit() {
    ggml_backend_dev_t dev = pgg_vcpu_device(40, 1, 1 << 20);
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    size_t free = 0, total = 0;
    ggml_backend_buffer_t a = ggml_backend_buft_alloc_buffer(buft, 700 << 10);
    CHECK(a != nullptr);
    ggml_backend_dev_memory(dev, &free, &total);
    CHECK(total == 1 << 20);
    CHECK(free == (1 << 20) - (700 << 10));
    CHECK(ggml_backend_buft_alloc_buffer(buft, 400 << 10) == nullptr);
    CHECK(ggml_backend_buft_alloc_buffer(buft, SIZE_MAX) == nullptr);
    ggml_backend_buffer_free(a);
    a = ggml_backend_buft_alloc_buffer(buft, 1 << 20);
    CHECK(a != nullptr);
    ggml_backend_buffer_free(a);
    pgg_device_stats st;
    pgg_vcpu_stats(dev, &st);
    CHECK(st.buffer_bytes == 0);
    CHECK(st.buffer_bytes_peak == 1 << 20);
}

#if !defined(_WIN32)
// A child of fork has no worker: it must be refused, and must not hang.
void forked_child() {
    ggml_backend_t b = vcpu(0);
    {
        mlp m(b, 1);
        CHECK(ggml_backend_graph_compute(b, m.graph) == GGML_STATUS_SUCCESS);
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            int bad = 0;
            pgg_error_clear();
            bad |= (ggml_backend_graph_compute_async(b, m.graph) != GGML_STATUS_FAILED) << 0;
            bad |= (pgg_error_pending() != PGG_ERROR_FORK) << 1;
            int kind = 0;
            error_of([&] { get(m.y); }, &kind);
            bad |= (kind != PGG_ERROR_FORK) << 2;
            error_of([&] { vcpu(0); }, &kind);
            bad |= (kind != PGG_ERROR_FORK) << 3;
            _exit(bad);
        }
        int status = 0;
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(ggml_backend_graph_compute(b, m.graph) == GGML_STATUS_SUCCESS);
        CHECK(get(m.y) == on_cpu(1));
    }
    ggml_backend_free(b);
}

// A process that ends while its devices are busy.
void exit_while_busy() {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "test_vcpu", "busy_exit", (char *) nullptr);
        _exit(9);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}
#endif

// The process's registry holds virtual devices only when the environment asks for them.
int list_registry() {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("VCPU");
    for (size_t i = 0; reg != nullptr && i < ggml_backend_reg_dev_count(reg); i++) {
        printf("%s ", ggml_backend_dev_name(ggml_backend_reg_dev_get(reg, i)));
    }
    printf("%d\n", ggml_backend_dev_by_name("VCPU1") != nullptr);
    return 0;
}

#if !defined(_WIN32)
std::string registry_with(const std::string & environment) {
    char program[4096] = {};
    CHECK(readlink("/proc/self/exe", program, sizeof(program) - 1) > 0);
    const std::string command = "env -u PYGGML_VCPU -u PYGGML_VCPU_THREADS " + environment + " '" + program + "' list_registry 2>&1";
    FILE * f = popen(command.c_str(), "r");
    std::string out;
    for (int c = fgetc(f); c != EOF; c = fgetc(f)) {
        out += (char) c;
    }
    pclose(f);
    while (out.rfind("ggml_", 0) == 0) { // what other backends say when they look for devices
        out.erase(0, out.find('\n') + 1);
    }
    return out;
}

void registry() {
    CHECK(registry_with("") == "0\n");
    CHECK(registry_with("PYGGML_VCPU=0") == "0\n");
    CHECK(registry_with("PYGGML_VCPU=2") == "VCPU0 VCPU1 1\n");
    CHECK(registry_with("PYGGML_VCPU=3 PYGGML_VCPU_THREADS=2,1") == "VCPU0 VCPU1 VCPU2 1\n");
    CHECK_HAS(registry_with("PYGGML_VCPU=two"), "is ignored");
    CHECK_HAS(registry_with("PYGGML_VCPU=2 PYGGML_VCPU_THREADS=x"), "is ignored");
}
#endif

void busy_exit() {
    ggml_backend_t a = vcpu(0, 2), b = vcpu(1, 2);
    net * n = new net;
    ggml_tensor * w = n->tensor(GGML_TYPE_F32, 1024, 1024);
    ggml_tensor * x = w;
    for (int i = 0; i < 200; i++) {
        x = ggml_mul_mat(n->ctx, w, x);
    }
    n->add(x);
    n->alloc(a);
    ggml_backend_graph_compute_async(a, n->graph);
    ggml_backend_tensor_copy_async(a, b, w, w);
    exit(7);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 2 && strcmp(argv[1], "list_registry") == 0) {
        return list_registry();
    }
    if (argc == 2 && strcmp(argv[1], "busy_exit") == 0) {
        alarm(20);
        busy_exit();
    }
    return run_cases(argc, argv, {
        { "device_properties", device_properties },
        { "equals_cpu", equals_cpu },
        { "graph_is_copied", graph_is_copied },
        { "concurrent", concurrent },
        { "allreduce", allreduce },
        { "allreduce_half", allreduce_half },
        { "comm_wants_distinct_devices", comm_wants_distinct_devices },
        { "copies_both_ways", copies_both_ways },
        { "many_threads", many_threads },
        { "copies_to_foreign_backends", copies_to_foreign_backends },
        { "transfers_2d", transfers_2d },
        { "memory_limit", memory_limit },
#if !defined(_WIN32)
        { "forked_child", forked_child },
        { "exit_while_busy", exit_while_busy },
        { "registry", registry },
#endif
    });
}
