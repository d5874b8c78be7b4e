// A meta device over virtual devices: right results, and after a failure on all of them right results again.
#include "check.h"

#include "ggml-backend-impl.h"

#include <numeric>

namespace {

constexpr int64_t N = 64, F = 96, T = 5, V = 50;

// w1 along axis 1 and w2 along axis 0, with the shares of `user_data`; everything else mirrored
ggml_backend_meta_split_state split(const ggml_tensor * t, void * user_data) {
    const std::vector<int64_t> & shares = *(const std::vector<int64_t> *) user_data;
    ggml_backend_meta_split_state s = {};
    const int axis = strcmp(t->name, "w1") == 0 ? 1 : strcmp(t->name, "w2") == 0 ? 0 : -1;
    s.axis       = axis < 0 ? GGML_BACKEND_SPLIT_AXIS_MIRRORED : (ggml_backend_meta_split_axis) axis;
    s.n_segments = 1;
    s.nr[0]      = 1;
    const int64_t sum = std::accumulate(shares.begin(), shares.end(), (int64_t) 0);
    for (size_t i = 0; axis >= 0 && i < shares.size(); i++) {
        s.ne[i] = t->ne[axis] * shares[i] / sum;
    }
    return s;
}

// z = 2 * (w2 silu(w1 rms_norm(embeddings[ids])))
struct model {
    net            weights, graph;
    ggml_gallocr_t alloc = nullptr;
    ggml_tensor *  ids, * z;

    explicit model(ggml_backend_t backend) {
        ggml_tensor * emb = weights.tensor(GGML_TYPE_F32, N, V);
        ggml_tensor * w1  = weights.tensor(GGML_TYPE_F32, N, F);
        ggml_tensor * w2  = weights.tensor(GGML_TYPE_F32, F, N);
        ggml_set_name(emb, "emb");
        ggml_set_name(w1, "w1");
        ggml_set_name(w2, "w2");
        weights.alloc(backend);
        set(emb, noise(N * V, 1));
        set(w1, noise(N * F, 2));
        set(w2, noise(F * N, 3));

        ggml_context * ctx = graph.ctx;
        ids = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, T);
        ggml_set_input(ids);
        ggml_set_name(ids, "ids");
        ggml_tensor * h = ggml_rms_norm(ctx, ggml_get_rows(ctx, emb, ids), 1e-5f);
        h = ggml_mul_mat(ctx, w2, ggml_silu(ctx, ggml_mul_mat(ctx, w1, h)));
        z = ggml_scale(ctx, h, 2.0f);
        ggml_set_output(z);
        graph.add(z);
        alloc = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
        CHECK(ggml_gallocr_alloc_graph(alloc, graph.graph));
    }
    ~model() { ggml_gallocr_free(alloc); }

    std::vector<float> run(ggml_backend_t backend, int32_t last_id) {
        const int32_t x[T] = { 3, 1, 4, 1, last_id };
        ggml_backend_tensor_set(ids, x, 0, sizeof(x));
        const ggml_status status = ggml_backend_graph_compute(backend, graph.graph);
        // an early failure of one device is returned when the next part of the graph is queued; a later one is thrown
        CHECK(status == GGML_STATUS_SUCCESS || (last_id >= V && status == GGML_STATUS_FAILED));
        return get(z);
    }
};

std::vector<float> on_cpu(int32_t last_id) {
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    std::vector<float> out;
    {
        model m(cpu);
        out = m.run(cpu, last_id);
    }
    ggml_backend_free(cpu);
    return out;
}

double nmse(const std::vector<float> & a, const std::vector<float> & b) {
    double e = 0, n = 0;
    for (size_t i = 0; i < a.size(); i++) {
        e += (double) (a[i] - b[i]) * (a[i] - b[i]);
        n += (double) b[i] * b[i];
    }
    return e / n;
}

void fails_and_recovers() {
    // meta devices are never freed, so their callback's data must not be either
    static const std::vector<std::vector<int64_t>> shares = { { 1, 1 }, { 3, 1 }, { 1, 1, 1 }, { 2, 1, 1, 1, 1 }, { 0, 1 } };
    const std::vector<float> expected = on_cpu(9);
    for (const std::vector<int64_t> & s : shares) {
        std::vector<ggml_backend_dev_t> devs;
        for (size_t i = 0; i < s.size(); i++) {
            devs.push_back(pgg_vcpu_device((int) i, i == 0 ? 2 : 1, 0));
        }
        ggml_backend_dev_t dev = ggml_backend_meta_device(devs.data(), devs.size(), split, (void *) &s);
        ggml_backend_t meta = ggml_backend_dev_init(dev, nullptr);
        {
            model m(meta);
            for (ggml_backend_dev_t d : devs) {
                pgg_vcpu_stats_reset(d);
            }
            CHECK(nmse(m.run(meta, 9), expected) < 1e-12);
            for (ggml_backend_dev_t d : devs) {
                pgg_device_stats st;
                pgg_vcpu_stats(d, &st);
                CHECK(st.allreduces == 1);
                CHECK(st.allreduce_bytes == N * T * sizeof(float));
                CHECK(st.graph_computes == 2);
            }
            for (int round = 0; round < 3; round++) {
                int kind = 0;
                const std::string message = error_of([&] { m.run(meta, V); }, &kind); // on every device, for it is mirrored
                CHECK_HAS(message, "GET_ROWS");
                CHECK_HAS(message, "'ids' holds 50");
                CHECK(kind == PGG_ERROR_ARGUMENT);
                CHECK(error_of([&] { CHECK(nmse(m.run(meta, 9), expected) < 1e-12); }).empty());
            }
        }
        ggml_backend_free(meta);
    }
}

} // namespace

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return run_cases(argc, argv, {
        { "fails_and_recovers", fails_and_recovers },
    });
}
