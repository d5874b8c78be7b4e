// Looking at nodes changes them: the scheduler computes the graph in pieces, and a piece that ends in a partial node is
// not summed.
#include "repro.h"

static std::vector<float> scheduled(problem p, const builder & build, bool observed) {
    p.renew();
    ggml_tensor * out = build(p);
    ggml_cgraph * g   = ggml_new_graph(p.ctx);
    ggml_build_forward_expand(g, out);
    place_leaves(p, true);
    ggml_backend_t backends[2] = { p.backend, ggml_backend_cpu_init() };
    ggml_backend_sched_t sched = ggml_backend_sched_new(backends, nullptr, 2, 64, false, false);
    for (int i = 0; i < ggml_graph_n_nodes(g); i++) {
        ggml_backend_sched_set_tensor_backend(sched, ggml_graph_node(g, i), p.backend);
    }
    if (observed) { // "needs this node" is answered with yes, and nothing is read
        ggml_backend_sched_set_eval_callback(sched, [](ggml_tensor *, bool, void *) { return true; }, nullptr);
    }
    ggml_backend_sched_alloc_graph(sched, g);
    ggml_backend_sched_graph_compute(sched, g);
    return read(out);
}

int main() {
    problem p;
    p.splits = { { "a", { 0, { 32, 32 } } }, { "x", { 0, { 32, 32 } } } };
    builder build = [](problem & p) {
        return ggml_scale(p.ctx, ggml_mul_mat(p.ctx, p.leaf("a", GGML_TYPE_F32, 64, 8), p.leaf("x", GGML_TYPE_F32, 64, 3)), 2.0f);
    };
    const std::vector<float> want = compute(p, build, false);
    for (bool observed : { false, true }) {
        const double e = nmse(want, scheduled(p, build, observed));
        printf("%s: %s, NMSE %.2g\n", observed ? "with an eval callback" : "without", verdict(e), e);
    }
}
