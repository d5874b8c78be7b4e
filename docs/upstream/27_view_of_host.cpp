// The scheduler hands over the nodes of a split as they come, with views of what the CPU computed. Upstream leaves out those of
// the host's leaves, and asks for the slices of the others. With an argument: a view of a leaf.
#include "repro.h"

static std::vector<float> scheduled(problem p, bool of_leaf) {
    p.renew();
    ggml_tensor * x = p.leaf("x", GGML_TYPE_F32, 16, 3);
    ggml_tensor * h = ggml_new_tensor_1d(p.ctx, GGML_TYPE_F32, 16*3); // the host's
    ggml_set_input(h);
    ggml_tensor * on_cpu = ggml_scale(p.ctx, h, 2.0f);
    ggml_tensor * first  = ggml_sqr(p.ctx, x);
    ggml_tensor * out    = ggml_add(p.ctx, first, ggml_reshape_2d(p.ctx, of_leaf ? h : on_cpu, 16, 3));
    ggml_cgraph * g = ggml_new_graph(p.ctx);
    ggml_build_forward_expand(g, on_cpu);
    ggml_build_forward_expand(g, out);
    place_leaves(p, true);
    ggml_backend_t backends[2] = { p.backend, ggml_backend_cpu_init() };
    ggml_backend_sched_t sched = ggml_backend_sched_new(backends, nullptr, 2, 64, false, false);
    ggml_backend_sched_set_tensor_backend(sched, on_cpu, backends[1]);
    ggml_backend_sched_set_tensor_backend(sched, first, p.backend);
    ggml_backend_sched_set_tensor_backend(sched, out, p.backend);
    ggml_backend_sched_alloc_graph(sched, g);
    const std::vector<float> ones(16*3, 1.0f);
    ggml_backend_tensor_set(h, ones.data(), 0, ggml_nbytes(h));
    ggml_backend_sched_graph_compute(sched, g);
    std::vector<float> have = read(x), want = read(out);
    for (size_t i = 0; i < have.size(); i++) {
        have[i] = have[i]*have[i] + (of_leaf ? 1.0f : 2.0f);
    }
    const double e = nmse(have, want);
    printf("%s: %s, NMSE %.2g\n", of_leaf ? "of a leaf" : "of a result", verdict(e), e);
    return want;
}

int main(int argc, char **) { scheduled(problem(), argc > 1); }
