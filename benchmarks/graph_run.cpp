// The C++ side of graph_run.py. As a program it builds the same graph, and runs it as often as its standard input says, one number a
// line; answers with the seconds that it took, by the clock and of the processor. Ends at the end of the input, and prints an element of the output then.
// As a library it runs a graph that is there already.
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

// n runs with their inputs and a fresh result each, as in Python; false when one failed
extern "C" bool runs(ggml_backend_t backend, ggml_cgraph * graph, ggml_tensor * x, ggml_tensor * w, ggml_tensor * y,
        const float * in_x, const float * in_w, int n, float * second) {
    for (int i = 0; i < n; i++) {
        std::vector<float> out(ggml_nelements(y));
        ggml_backend_tensor_set(x, in_x, 0, ggml_nbytes(x));
        ggml_backend_tensor_set(w, in_w, 0, ggml_nbytes(w));
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            return false;
        }
        ggml_backend_tensor_get(y, out.data(), 0, ggml_nbytes(y));
        *second = out[1];
    }
    return true;
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: graph_run add|mul_mat NODES\n");
        return 2;
    }
    const bool mul_mat = strcmp(argv[1], "mul_mat") == 0;
    const int  n_nodes = atoi(argv[2]);

    ggml_init_params params = { ggml_tensor_overhead()*(n_nodes + 16) + ggml_graph_overhead_custom(n_nodes + 16, false), nullptr, true };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 64);
    ggml_tensor * w = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 64);
    ggml_set_input(x);
    ggml_set_input(w);
    ggml_tensor * y = x;
    for (int i = 0; i < n_nodes; i++) {
        y = mul_mat ? ggml_mul_mat(ctx, w, y) : ggml_add(ctx, y, w);
    }
    ggml_set_output(y);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, n_nodes + 16, false);
    ggml_build_forward_expand(graph, y);

    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    ggml_gallocr_t alloc = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    if (!ggml_gallocr_alloc_graph(alloc, graph)) {
        return 1;
    }

    std::vector<float> in_x(64*64), in_w(64*64);
    for (int i = 0; i < 64*64; i++) {
        in_x[i] = (i % 7)*0.25f;
        in_w[i] = mul_mat ? (i % 65 == 0 ? 1.0f : 0.0f) : (i % 5)*0.125f;
    }
    float second = 0;
    int n = 0;
    while (scanf("%d", &n) == 1) {
        const auto start = std::chrono::steady_clock::now();
        const clock_t cpu = clock();
        if (!runs(backend, graph, x, w, y, in_x.data(), in_w.data(), n, &second)) {
            return 1;
        }
        printf("%.9f %.9f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
            double(clock() - cpu)/CLOCKS_PER_SEC);
        fflush(stdout);
    }
    printf("%.9g\n", second);
    ggml_gallocr_free(alloc);
    ggml_backend_free(backend);
    ggml_free(ctx);
    return 0;
}
