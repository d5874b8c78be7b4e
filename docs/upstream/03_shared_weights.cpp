// Two graphs, each with memory of its own, take views of the same weight. Once the second has run, the first cannot.
#include "repro.h"

struct user {
    ggml_cgraph *  graph;
    ggml_tensor *  out;
    ggml_gallocr_t alloc;

    user(problem & p, ggml_tensor * w) {
        graph = ggml_new_graph(p.ctx);
        out   = ggml_scale(p.ctx, ggml_view_2d(p.ctx, w, 16, 4, w->nb[1], 0), 2.0f);
        ggml_build_forward_expand(graph, out);
        alloc = ggml_gallocr_new(ggml_backend_get_default_buffer_type(p.backend));
        ggml_gallocr_alloc_graph(alloc, graph);
    }
};

int main() {
    problem p;
    ggml_tensor * w = p.leaf("w", GGML_TYPE_F32, 16, 8);
    place_leaves(p, true);
    user a(p, w);
    ggml_backend_graph_compute(p.backend, a.graph);
    user b(p, w);
    ggml_backend_graph_compute(p.backend, b.graph);
    printf("A ran, B ran\n");
    fflush(stdout);
    ggml_backend_graph_compute(p.backend, a.graph);
    printf("A ran again\n");
}
