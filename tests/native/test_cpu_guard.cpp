// Kernels that fail: on the CPU backend and on a virtual device, with one thread and with three.
#include "check.h"

#include "ggml-backend-impl.h"

namespace {

// Runs f on both kinds of backend with different numbers of threads.
void on_all(const std::function<void(ggml_backend_t, int)> & f) {
    for (int threads : { 1, 3 }) {
        ggml_backend_t cpu = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(cpu, threads);
        f(cpu, threads);
        ggml_backend_free(cpu);

        ggml_backend_t v = ggml_backend_dev_init(pgg_vcpu_device(0, threads, 0), nullptr);
        f(v, threads);
        ggml_backend_free(v);
    }
}

// The message of a graph that must fail, wherever it surfaces.
std::string failure_of(ggml_backend_t backend, ggml_cgraph * graph, int * kind = nullptr) {
    ggml_status status = GGML_STATUS_SUCCESS;
    bool returned = false;
    const std::string message = error_of([&] {
        status = ggml_backend_graph_compute(backend, graph);
        returned = true;
    }, kind);
    CHECK(!message.empty());
    CHECK(!returned || status == GGML_STATUS_FAILED); // a virtual device throws when it is waited for
    return message;
}

// The backend must compute rightly afterwards, and hold no error back.
void still_works(ggml_backend_t backend) {
    net n;
    ggml_tensor * a = n.tensor(GGML_TYPE_F32, 32, 8), * b = n.tensor(GGML_TYPE_F32, 32, 9);
    ggml_tensor * c = ggml_mul_mat(n.ctx, a, b);
    n.add(c);
    n.alloc(backend);
    const std::vector<float> x = noise(32 * 8, 1), y = noise(32 * 9, 2);
    set(a, x);
    set(b, y);
    pgg_error_clear();
    CHECK(ggml_backend_graph_compute(backend, n.graph) == GGML_STATUS_SUCCESS);
    CHECK(pgg_error_pending() == PGG_ERROR_NONE);
    const std::vector<float> z = get(c);
    for (int j = 0; j < 9; j++) {
        for (int i = 0; i < 8; i++) {
            double sum = 0;
            for (int k = 0; k < 32; k++) {
                sum += (double) x[i*32 + k] * y[j*32 + k];
            }
            CHECK(std::fabs(sum - z[j*8 + i]) < 1e-4);
        }
    }
}

int failing_thread;

void fail_on_one(ggml_tensor *, int ith, int, void *) {
    if (ith == failing_thread) {
        GGML_ABORT("planted on thread %d", ith);
    }
}

void fail_on_all(ggml_tensor *, int, int, void *) {
    GGML_ABORT("planted on all");
}

void throw_other(ggml_tensor *, int, int, void *) {
    throw std::runtime_error("not one of ours");
}

// an op before it and many behind it: all threads must leave at once
void planted(ggml_custom_op_t op, const char * text) {
    on_all([&](ggml_backend_t backend, int threads) {
        for (int behind : { 0, 20 }) {
            for (failing_thread = 0; failing_thread < threads; failing_thread++) {
                {
                    net n;
                    ggml_tensor * a = n.tensor(GGML_TYPE_F32, 16);
                    ggml_tensor * x = ggml_scale(n.ctx, a, 2.0f);
                    ggml_tensor * args[] = { x };
                    x = ggml_custom_4d(n.ctx, GGML_TYPE_F32, 16, 1, 1, 1, args, 1, op, GGML_N_TASKS_MAX, nullptr);
                    ggml_set_name(x, "bad");
                    for (int i = 0; i < behind; i++) {
                        x = ggml_scale(n.ctx, x, 2.0f);
                    }
                    n.add(x);
                    n.alloc(backend);
                    const std::string message = failure_of(backend, n.graph);
                    CHECK_HAS(message, text);
                    CHECK_HAS(message, "CUSTOM 'bad' (node 1)");
                }
                still_works(backend);
            }
        }
    });
}

void abort_on_one_thread()  { planted(fail_on_one, "planted on thread"); }
void abort_on_all_threads() { planted(fail_on_all, "planted on all"); }
void foreign_exception()    { planted(throw_other, "not one of ours"); }

// RMS_NORM of a transposed tensor asserts in the kernel that is fused with the MUL behind it.
void fused_kernel() {
    on_all([&](ggml_backend_t backend, int) {
        {
            net n;
            ggml_tensor * x = n.tensor(GGML_TYPE_F32, 8, 16), * w = n.tensor(GGML_TYPE_F32, 16);
            ggml_tensor * y = ggml_rms_norm(n.ctx, ggml_transpose(n.ctx, x), 1e-5f);
            ggml_set_name(y, "norm");
            ggml_tensor * z = ggml_scale(n.ctx, ggml_mul(n.ctx, y, w), 2.0f);
            n.add(z);
            n.alloc(backend);
            const std::string message = failure_of(backend, n.graph);
            CHECK_HAS(message, "RMS_NORM 'norm' (node 1)");
        }
        still_works(backend);
    });
}

// Builds an op that takes indices, with `bad` as one of them.
using builder = std::function<ggml_tensor *(net & n, ggml_tensor ** ids)>;

void bad_index(const char * op, int64_t limit, const builder & build) {
    on_all([&](ggml_backend_t backend, int) {
        for (int64_t bad : { limit, (int64_t) -1, (int64_t) 1 << 30, limit - 1 }) {
            {
                net n;
                ggml_tensor * ids = nullptr;
                ggml_tensor * y = build(n, &ids);
                ggml_set_name(ids, "ids");
                n.add(ggml_cont(n.ctx, y));
                n.alloc(backend);
                ggml_backend_buffer_clear(n.buffer, 0);
                const int64_t n_ids = ggml_nelements(ids);
                for (int64_t i = 0; i < n_ids; i++) {
                    const int64_t value = i + 1 == n_ids ? bad : i % limit;
                    const int32_t value32 = (int32_t) value;
                    if (ids->type == GGML_TYPE_I64) {
                        ggml_backend_tensor_set(ids, &value, i * 8, 8);
                    } else {
                        ggml_backend_tensor_set(ids, &value32, i * 4, 4);
                    }
                }
                if (bad == limit - 1) {
                    CHECK(error_of([&] { CHECK(ggml_backend_graph_compute(backend, n.graph) == GGML_STATUS_SUCCESS); }).empty());
                    continue;
                }
                int kind = 0;
                const std::string message = failure_of(backend, n.graph, &kind);
                CHECK(kind == PGG_ERROR_ARGUMENT);
                CHECK_HAS(message, op);
                CHECK_HAS(message, ("'ids' holds " + std::to_string(bad)).c_str());
                CHECK_HAS(message, ("from 0 to " + std::to_string(limit - 1)).c_str());
            }
            still_works(backend);
        }
    });
}

void bad_indices() {
    bad_index("GET_ROWS", 10, [](net & n, ggml_tensor ** ids) {
        return ggml_get_rows(n.ctx, n.tensor(GGML_TYPE_F32, 4, 10), *ids = n.tensor(GGML_TYPE_I32, 6));
    });
    bad_index("GET_ROWS", 10, [](net & n, ggml_tensor ** ids) {
        return ggml_get_rows(n.ctx, n.tensor(GGML_TYPE_Q8_0, 32, 10, 2), *ids = n.tensor(GGML_TYPE_I32, 6, 2));
    });
    bad_index("GET_ROWS_BACK", 10, [](net & n, ggml_tensor ** ids) {
        return ggml_get_rows_back(n.ctx, n.tensor(GGML_TYPE_F32, 4, 6), *ids = n.tensor(GGML_TYPE_I32, 6), n.tensor(GGML_TYPE_F32, 4, 10));
    });
    for (ggml_type type : { GGML_TYPE_I32, GGML_TYPE_I64 }) {
        bad_index("SET_ROWS", 10, [type](net & n, ggml_tensor ** ids) {
            return ggml_set_rows(n.ctx, n.tensor(GGML_TYPE_F32, 4, 10), n.tensor(GGML_TYPE_F32, 4, 6), *ids = n.tensor(type, 6));
        });
    }
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        bad_index("MUL_MAT_ID", 8, [type](net & n, ggml_tensor ** ids) {
            return ggml_mul_mat_id(n.ctx, n.tensor(type, 32, 16, 8), n.tensor(GGML_TYPE_F32, 32, 2, 5), *ids = n.tensor(GGML_TYPE_I32, 2, 5));
        });
    }
    bad_index("ADD_ID", 8, [](net & n, ggml_tensor ** ids) {
        return ggml_add_id(n.ctx, n.tensor(GGML_TYPE_F32, 16, 2, 5), n.tensor(GGML_TYPE_F32, 16, 8), *ids = n.tensor(GGML_TYPE_I32, 2, 5));
    });
    bad_index("SSM_SCAN", 3, [](net & n, ggml_tensor ** ids) {
        const auto t = [&](int64_t a, int64_t b, int64_t c, int64_t d) { return ggml_new_tensor_4d(n.ctx, GGML_TYPE_F32, a, b, c, d); };
        const int64_t state = 16, dim = 1, heads = 4, tokens = 2, seqs = 2;
        return ggml_ssm_scan(n.ctx, t(state, dim, heads, 3), t(dim, heads, tokens, seqs), t(heads, tokens, seqs, 1), t(state, heads, 1, 1),
            t(state, 1, tokens, seqs), t(state, 1, tokens, seqs), *ids = n.tensor(GGML_TYPE_I32, seqs), 1);
    });
}

// Several pools fail at once: each caller gets its own message.
void at_once() {
    std::vector<ggml_backend_t> b;
    for (int i = 0; i < 4; i++) {
        b.push_back(ggml_backend_dev_init(pgg_vcpu_device(i, 2, 0), nullptr));
    }
    for (int round = 0; round < 50; round++) {
        std::vector<net> nets(4);
        for (int i = 0; i < 4; i++) {
            ggml_tensor * x = ggml_custom_4d(nets[i].ctx, GGML_TYPE_F32, 16, 1, 1, 1, nullptr, 0, fail_on_all, GGML_N_TASKS_MAX, nullptr);
            ggml_format_name(x, "bad-%d", i);
            nets[i].add(x);
            nets[i].alloc(b[i]);
            ggml_backend_graph_compute_async(b[i], nets[i].graph);
        }
        for (int i = 0; i < 4; i++) {
            const std::string message = error_of([&] { ggml_backend_synchronize(b[i]); });
            CHECK_HAS(message, ("VCPU" + std::to_string(i) + ": ").c_str());
            CHECK_HAS(message, ("'bad-" + std::to_string(i) + "'").c_str());
        }
    }
    for (int i = 0; i < 4; i++) {
        still_works(b[i]);
        ggml_backend_free(b[i]);
    }
}

// A failure on one device: partners in copies and all-reduces must go on, get no stale result, and be told once.
void failure_spreads_once() {
    ggml_backend_t b[2] = { ggml_backend_dev_init(pgg_vcpu_device(0, 1, 0), nullptr), ggml_backend_dev_init(pgg_vcpu_device(1, 1, 0), nullptr) };
    ggml_backend_reg_t reg = pgg_vcpu_reg();
    void * comm = ((ggml_backend_comm_init_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_comm_init"))(b, 2);
    auto reduce = (ggml_backend_comm_allreduce_tensor_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_comm_allreduce_tensor");
    for (int how = 0; how < 4; how++) {
        {
            net n[2];
            ggml_tensor * t[2];
            for (int i = 0; i < 2; i++) {
                t[i] = n[i].tensor(GGML_TYPE_F32, 16);
                t[i]->flags |= GGML_TENSOR_FLAG_COMPUTE;
                ggml_tensor * x = i == 0 ? ggml_custom_4d(n[i].ctx, GGML_TYPE_F32, 16, 1, 1, 1, nullptr, 0, fail_on_all, 1, nullptr)
                                         : ggml_scale(n[i].ctx, t[i], 2.0f);
                n[i].add(x);
                n[i].alloc(b[i]);
                set(t[i], std::vector<float>(16, 1.0f));
                ggml_backend_graph_compute_async(b[i], n[i].graph);
            }
            if (how < 2) {
                CHECK(reduce(comm, t));
            } else {
                ggml_backend_tensor_copy_async(b[0], b[1], t[0], t[1]);
            }
            // whoever waits first gets it
            const int first = how % 2;
            CHECK_HAS(error_of([&] { ggml_backend_synchronize(b[first]); }), "VCPU0: CUSTOM");
            CHECK(error_of([&] { ggml_backend_synchronize(b[1 - first]); }).empty());
            CHECK(get(t[1]) == std::vector<float>(16, 1.0f)); // neither reduced nor copied
        }
        still_works(b[0]);
        still_works(b[1]);
    }
    // both fail for a reason of their own: that is one failure of what they do together
    {
        net n[2];
        for (int i = 0; i < 2; i++) {
            n[i].add(ggml_custom_4d(n[i].ctx, GGML_TYPE_F32, 16, 1, 1, 1, nullptr, 0, fail_on_all, 1, nullptr));
            n[i].alloc(b[i]);
            ggml_backend_graph_compute_async(b[i], n[i].graph);
        }
        CHECK_HAS(error_of([&] { ggml_backend_synchronize(b[0]); }), "VCPU0: CUSTOM");
        CHECK(error_of([&] { ggml_backend_synchronize(b[1]); }).empty());
        still_works(b[1]);
        still_works(b[0]);
    }
    // without a wait in between, the next graph is refused, once
    {
        net n;
        n.add(ggml_custom_4d(n.ctx, GGML_TYPE_F32, 16, 1, 1, 1, nullptr, 0, fail_on_all, 1, nullptr));
        n.alloc(b[0]);
        ggml_backend_graph_compute_async(b[0], n.graph);
        pgg_vcpu_stats_reset(b[0]->device); // waits, and delivers nothing
        pgg_error_clear();
        CHECK(ggml_backend_graph_compute_async(b[0], n.graph) == GGML_STATUS_FAILED);
        CHECK_HAS(pgg_error_message(), "planted");
        pgg_error_clear();
        CHECK(error_of([&] { ggml_backend_synchronize(b[0]); }).empty());
        // outside of a guard nothing is thrown: a pending error, and a line in the log
        ggml_backend_graph_compute_async(b[0], n.graph);
        ggml_backend_synchronize(b[0]);
        CHECK_HAS(pgg_error_message(), "planted");
        // freed with a failure that nobody asked for
        ggml_backend_graph_compute_async(b[0], n.graph);
        ggml_backend_free(b[0]);
    }
    ((ggml_backend_comm_free_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_comm_free"))(comm);
    ggml_backend_free(b[1]);
}

bool stop_now(void *) {
    return true;
}

void abort_callback() {
    ggml_backend_t b = ggml_backend_dev_init(pgg_vcpu_device(0, 2, 0), nullptr);
    auto set_callback = (ggml_backend_set_abort_callback_t) ggml_backend_reg_get_proc_address(pgg_vcpu_reg(), "ggml_backend_set_abort_callback");
    {
        net n;
        n.add(ggml_scale(n.ctx, n.tensor(GGML_TYPE_F32, 16), 2.0f));
        n.alloc(b);
        set_callback(b, stop_now, nullptr);
        int kind = 0;
        CHECK_HAS(error_of([&] { ggml_backend_graph_compute(b, n.graph); }, &kind), "abort callback");
        CHECK(kind == PGG_ERROR_CALLBACK);
        set_callback(b, nullptr, nullptr);
    }
    still_works(b);
    ggml_backend_free(b);
}

} // namespace

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return run_cases(argc, argv, {
        { "abort_on_one_thread", abort_on_one_thread },
        { "abort_on_all_threads", abort_on_all_threads },
        { "foreign_exception", foreign_exception },
        { "fused_kernel", fused_kernel },
        { "bad_indices", bad_indices },
        { "at_once", at_once },
        { "failure_spreads_once", failure_spreads_once },
        { "abort_callback", abort_callback },
    });
}
