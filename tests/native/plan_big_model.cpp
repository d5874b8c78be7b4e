// Loads a model over simulated devices in plan mode, makes a context, decodes a prompt and a token, and prints what
// that cost and what the devices were asked to do. Usage: plan_big_model MODEL.gguf N_DEVICES COMM TENSOR|LAYER [N_CTX]
// Exit status 1 when something real was allocated.

#include "pyggml.h"

#include "llama.h"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static double rss_mib() {
    long pages = 0, all = 0;
    FILE * f = fopen("/proc/self/statm", "r");
    if (f == nullptr || fscanf(f, "%ld %ld", &all, &pages) != 2) {
        abort();
    }
    fclose(f);
    return pages * (double) sysconf(_SC_PAGESIZE) / (1 << 20);
}

static double peak_mib() {
    rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss / 1024.0;
}

static double t0;

static void report(const char * what, const std::vector<ggml_backend_dev_t> & devs) {
    printf("%-10s %7.3f s  rss %7.1f MiB  peak %7.1f MiB  heap %7.1f MiB\n", what, seconds() - t0, rss_mib(), peak_mib(), mallinfo2().uordblks / 1048576.0);
    for (ggml_backend_dev_t dev : devs) {
        pgg_device_stats s;
        pgg_sim_stats(dev, &s);
        printf("  %-6s computes %4llu nodes %5llu allreduces %4llu (%llu bytes) copies %4llu (%llu) sets %4llu (%llu) gets %3llu (%llu) memory %.1f MiB, peak %.1f\n",
            ggml_backend_dev_name(dev), (unsigned long long) s.graph_computes, (unsigned long long) s.nodes, (unsigned long long) s.allreduces,
            (unsigned long long) s.allreduce_bytes, (unsigned long long) s.copies, (unsigned long long) s.copy_bytes, (unsigned long long) s.sets,
            (unsigned long long) s.set_bytes, (unsigned long long) s.gets, (unsigned long long) s.get_bytes,
            s.buffer_bytes / 1048576.0, s.buffer_bytes_peak / 1048576.0);
        pgg_sim_stats_reset(dev);
    }
    pgg_device_stats h;
    pgg_host_stats(&h);
    printf("  host   computes %4llu nodes %5llu sets %llu (%llu) memory %.1f MiB, peak %.1f\n", (unsigned long long) h.graph_computes,
        (unsigned long long) h.nodes, (unsigned long long) h.sets, (unsigned long long) h.set_bytes, h.buffer_bytes / 1048576.0, pgg_plan_host_bytes() / 1048576.0);
    t0 = seconds();
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL.gguf N_DEVICES COMM(0|1) tensor|layer [N_CTX]\n", argv[0]);
        return 2;
    }
    const int n_dev = atoi(argv[2]);
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_WARN && (level != GGML_LOG_LEVEL_CONT || getenv("VERBOSE")) || getenv("VERBOSE")) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();

    std::vector<ggml_backend_dev_t> devs;
    for (int i = 0; i < n_dev; i++) {
        const std::string name = "SIM" + std::to_string(i);
        pgg_sim_params p = {};
        p.name   = name.c_str();
        p.memory = 80ull << 30;
        p.comm   = atoi(argv[3]) != 0;
        devs.push_back(pgg_sim_device(&p));
        if (devs.back() == nullptr) {
            fprintf(stderr, "%s\n", pgg_error_message());
            return 1;
        }
    }
    std::vector<ggml_backend_dev_t> list = devs;
    list.push_back(nullptr);

    ggml_backend_buffer_type_t cpu = ggml_backend_cpu_buffer_type();
    pgg_buft_watch(cpu);

    t0 = seconds();
    const double start = t0;
    report("start", devs);
    pgg_plan_mode_begin();

    llama_model_params mp = llama_model_default_params();
    mp.devices         = list.data();
    mp.n_gpu_layers    = 999;
    mp.split_mode      = strcmp(argv[4], "tensor") == 0 ? LLAMA_SPLIT_MODE_TENSOR : LLAMA_SPLIT_MODE_LAYER;
    mp.load_mode       = LLAMA_LOAD_MODE_MMAP;
    mp.use_extra_bufts = getenv("EXTRA") != nullptr;
    llama_model * model = llama_model_load_from_file(argv[1], mp);
    if (model == nullptr) {
        return 1;
    }
    report("load", devs);

    llama_context_params cp = llama_context_default_params();
    cp.n_ctx           = argc > 5 ? atoi(argv[5]) : 8192;
    cp.n_batch         = 512;
    cp.n_ubatch        = 512;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context * ctx = llama_init_from_model(model, cp);
    if (ctx == nullptr) {
        return 1;
    }
    report("context", devs);

    for (int n : { 512, 1, 1 }) {
        llama_batch batch = llama_batch_init(n, 0, 1);
        static int pos = 0;
        batch.n_tokens = n;
        for (int i = 0; i < n; i++) {
            batch.token[i]     = 2;
            batch.pos[i]       = pos++;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = getenv("ALL_LOGITS") != nullptr || i == n - 1;
        }
        if (llama_decode(ctx, batch) != 0) {
            return 1;
        }
        llama_synchronize(ctx);
        llama_batch_free(batch);
        report(n == 512 ? "decode 512" : "decode 1", devs);
    }
    printf("total %.3f s\n", seconds() - start);
    pgg_memory_row rows[32];
    const size_t n_rows = pgg_llama_memory(ctx, rows, 32);
    for (size_t i = 0; i < n_rows && i < 32; i++) {
        printf("  %-12s model %.1f context %.1f compute %.1f MiB\n", ggml_backend_buft_name(rows[i].buft), rows[i].model / 1048576.0,
            rows[i].context / 1048576.0, rows[i].compute / 1048576.0);
    }
    llama_free(ctx);
    llama_model_free(model);
    pgg_plan_mode_end();
    report("freed", devs);

    const size_t real = pgg_buft_allocated_total(cpu);
    if (real != 0) {
        fprintf(stderr, "%zu bytes were really allocated from the CPU buffer type\n", real);
        return 1;
    }
    return 0;
}
