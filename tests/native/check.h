// A few lines in place of a test framework: named cases, checks that say what they saw, and graphs to compute.
#pragma once

#include "base/guard.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#if !defined(_WIN32)
#    include <unistd.h>
#endif

inline int n_failed = 0;

#define CHECK(x) do { if (!(x)) { n_failed++; printf("%s:%d: %s: not so\n", __FILE__, __LINE__, #x); } } while (0)

#define CHECK_HAS(text, part) do { const std::string t_ = (text); if (t_.find(part) == std::string::npos) { n_failed++; \
    printf("%s:%d: \"%s\" does not contain \"%s\"\n", __FILE__, __LINE__, t_.c_str(), part); } } while (0)

struct test_case {
    const char *          name;
    std::function<void()> run;
};

// Runs the cases, or only those that are named. A case that hangs ends the program.
inline int run_cases(int argc, char ** argv, const std::vector<test_case> & cases) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    pgg_guard_install();
    for (const test_case & c : cases) {
        bool chosen = argc < 2;
        for (int i = 1; i < argc; i++) {
            chosen = chosen || strcmp(argv[i], c.name) == 0;
        }
        if (!chosen) {
            continue;
        }
        printf("%s\n", c.name);
#if !defined(_WIN32)
        alarm(60);
#endif
        pgg_error_clear();
        c.run();
    }
    printf(n_failed == 0 ? "ok\n" : "%d checks failed\n", n_failed);
    return n_failed == 0 ? 0 : 1;
}

// the message of what f throws inside a guard, or of the error that it leaves; empty when it succeeds
template <class F> std::string error_of(F && f, int * kind = nullptr) {
    pgg_error_clear();
    pgg::guarded([&] { f(); return 0; }, 0);
    const std::string message = pgg_error_message();
    if (kind != nullptr) {
        *kind = pgg_error_pending();
    }
    pgg_error_clear();
    return message;
}

// Tensors and a graph; alloc() puts them into one buffer of the backend's kind.
struct net {
    ggml_context *        ctx;
    ggml_cgraph *         graph;
    ggml_backend_buffer_t buffer = nullptr;

    net() {
        ctx   = ggml_init({ ggml_tensor_overhead() * 512 + ggml_graph_overhead() * 2, nullptr, true });
        graph = ggml_new_graph(ctx);
    }
    ~net() {
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }
    ggml_tensor * tensor(ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1) {
        return ggml_new_tensor_3d(ctx, type, n0, n1, n2);
    }
    void add(ggml_tensor * t) { ggml_build_forward_expand(graph, t); }
    void alloc(ggml_backend_t backend) { buffer = ggml_backend_alloc_ctx_tensors(ctx, backend); }
};

inline std::vector<float> noise(size_t n, uint32_t seed, float scale = 1.0f) {
    std::vector<float> x(n);
    uint64_t s = seed * 0x9e3779b97f4a7c15ull + 1;
    for (float & f : x) {
        s = s * 6364136223846793005ull + 1442695040888963407ull;
        f = scale * ((float) (s >> 40) / (1 << 23) - 1.0f);
    }
    return x;
}

inline void set(ggml_tensor * t, const std::vector<float> & x) {
    ggml_backend_tensor_set(t, x.data(), 0, x.size() * sizeof(float));
}

inline std::vector<float> get(const ggml_tensor * t) {
    std::vector<float> x(ggml_nelements(t));
    ggml_backend_tensor_get(t, x.data(), 0, ggml_nbytes(t));
    return x;
}
