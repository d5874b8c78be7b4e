// An RPC server that goes away: never the end of this process, and never a hang.
#include "check.h"

#include "ggml-backend-impl.h"
#include "ggml-rpc.h"

#include <arpa/inet.h>
#include <chrono>
#include <csignal>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>

namespace {

int free_port() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in a = {};
    a.sin_family      = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(a);
    bind(fd, (sockaddr *) &a, sizeof(a));
    getsockname(fd, (sockaddr *) &a, &size);
    close(fd);
    return ntohs(a.sin_port);
}

struct server {
    int         port;
    pid_t       pid = -1;
    std::string endpoint;

    explicit server(int port) : port(port), endpoint("127.0.0.1:" + std::to_string(port)) { start(); }
    ~server() { kill(); }

    void start() {
        fflush(stdout);
        const std::string name = std::to_string(port);
        pid = fork();
        if (pid == 0) {
            execl("/proc/self/exe", "test_rpc", "serve", name.c_str(), (char *) nullptr);
            _exit(9);
        }
        for (int i = 0; i < 500; i++) { // until it listens
            const int fd = socket(AF_INET, SOCK_STREAM, 0);
            sockaddr_in a = {};
            a.sin_family      = AF_INET;
            a.sin_port        = htons(port);
            a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            const bool there = connect(fd, (sockaddr *) &a, sizeof(a)) == 0;
            close(fd);
            if (there) {
                return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        CHECK(!"the server listens");
    }
    void kill() {
        if (pid > 0) {
            ::kill(pid, SIGKILL);
            waitpid(pid, nullptr, 0);
            pid = -1;
        }
    }
};

double seconds_since(std::chrono::steady_clock::time_point t) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

size_t open_files() {
    size_t n = 0;
    DIR * d = opendir("/proc/self/fd");
    while (readdir(d) != nullptr) {
        n++;
    }
    closedir(d);
    return n;
}

ggml_backend_t connect_to(const std::string & endpoint) {
    ggml_backend_t b = nullptr;
    CHECK(error_of([&] { b = ggml_backend_rpc_init(endpoint.c_str(), 0); }).empty());
    return b;
}

void computes(ggml_backend_t b) {
    net n;
    ggml_tensor * x = n.tensor(GGML_TYPE_F32, 1000);
    ggml_tensor * y = ggml_scale(n.ctx, x, 3.0f);
    n.add(y);
    const std::string error = error_of([&] {
        n.alloc(b);
        set(x, std::vector<float>(1000, 2.0f));
        CHECK(ggml_backend_graph_compute(b, n.graph) == GGML_STATUS_SUCCESS);
        CHECK(get(y) == std::vector<float>(1000, 6.0f));
    });
    CHECK(error.empty());
    if (!error.empty()) {
        printf("%s\n", error.c_str());
    }
}

void killed_while_idle() {
    server s(free_port());
    ggml_backend_t b = connect_to(s.endpoint);
    computes(b);
    {
        net n;
        ggml_tensor * x = n.tensor(GGML_TYPE_F32, 1000);
        ggml_tensor * y = ggml_scale(n.ctx, x, 3.0f);
        n.add(y);
        n.alloc(b);
        s.kill();
        const auto t0 = std::chrono::steady_clock::now();
        for (int i = 0; i < 3; i++) {
            int kind = 0;
            const std::string message = error_of([&] { get(y); }, &kind);
            CHECK(kind == PGG_ERROR_DEVICE);
            CHECK_HAS(message, ("RPC server " + s.endpoint).c_str());
        }
        CHECK_HAS(error_of([&] { set(x, std::vector<float>(1000, 2.0f)); }), "RPC server");
        CHECK_HAS(error_of([&] { ggml_backend_graph_compute(b, n.graph); }), "RPC server");
        CHECK_HAS(error_of([&] { ggml_backend_synchronize(b); }), "RPC server");
        CHECK_HAS(error_of([&] { ggml_backend_alloc_buffer(b, 100); }), "cannot be reached");
        CHECK_HAS(error_of([&] { ggml_backend_rpc_init(s.endpoint.c_str(), 0); }), "cannot be reached");
        CHECK(seconds_since(t0) < 5);
    } // freed silently
    ggml_backend_free(b);

    s.start(); // the same endpoint again
    b = connect_to(s.endpoint);
    computes(b);
    ggml_backend_free(b);
}

// what a lost connection held keeps failing, while the same endpoint works again
void old_and_new() {
    server s(free_port());
    ggml_backend_t old = connect_to(s.endpoint);
    net n;
    ggml_tensor * x = n.tensor(GGML_TYPE_F32, 10);
    n.add(ggml_scale(n.ctx, x, 3.0f));
    n.alloc(old);
    ggml_backend_event_t event = ggml_backend_event_new(old->device);
    s.kill();
    CHECK_HAS(error_of([&] { get(x); }), "RPC server");
    s.start();
    ggml_backend_t b = connect_to(s.endpoint);
    computes(b);
    CHECK_HAS(error_of([&] { get(x); }), "RPC server");
    CHECK_HAS(error_of([&] { ggml_backend_event_record(event, old); ggml_backend_event_synchronize(event); }), "RPC server");
    computes(b);
    ggml_backend_event_free(event);
    ggml_backend_free(old);
    computes(b);
    ggml_backend_free(b);
}

void killed_while_computing() {
    server s(free_port());
    for (int round = 0; round < 3; round++) {
        ggml_backend_t b = connect_to(s.endpoint);
        {
            net n;
            ggml_tensor * w = n.tensor(GGML_TYPE_F32, 1024, 1024);
            ggml_tensor * y = w;
            for (int i = 0; i < 300; i++) {
                y = ggml_mul_mat(n.ctx, w, y);
            }
            n.add(y);
            n.alloc(b);
            set(w, noise(1024 * 1024, 1, 0.01f));
            std::thread killer([&] {
                std::this_thread::sleep_for(std::chrono::milliseconds(150));
                s.kill();
            });
            const auto t0 = std::chrono::steady_clock::now();
            const std::string message = error_of([&] {
                ggml_backend_graph_compute_async(b, n.graph);
                if (round == 0) {
                    get(y);
                } else if (round == 1) {
                    ggml_backend_synchronize(b); // waits until all is sent, not until it is computed
                    get(y);
                } else {
                    std::vector<float> x(1024 * 1024);
                    ggml_backend_tensor_get_async(b, y, x.data(), 0, ggml_nbytes(y));
                    ggml_backend_synchronize(b);
                }
            });
            killer.join();
            CHECK_HAS(message, ("RPC server " + s.endpoint).c_str());
            CHECK(seconds_since(t0) < 10);
        }
        ggml_backend_free(b);
        s.start();
        b = connect_to(s.endpoint);
        computes(b);
        ggml_backend_free(b);
    }
}

void nobody_there() {
    const std::string endpoint = "127.0.0.1:" + std::to_string(free_port());
    const size_t before = open_files();
    for (int i = 0; i < 50; i++) {
        int kind = 0;
        const std::string message = error_of([&] { ggml_backend_rpc_add_server(endpoint.c_str()); }, &kind);
        CHECK(kind == PGG_ERROR_DEVICE);
        CHECK_HAS(message, endpoint.c_str());
    }
    CHECK(open_files() == before);
    CHECK_HAS(error_of([&] { ggml_backend_rpc_add_server("no-port"); }), "no-port");
    CHECK_HAS(error_of([&] { ggml_backend_rpc_add_server("127.0.0.1:x"); }), "127.0.0.1:x");
}

// many cycles of a server's life leave no files and no threads behind
void cycles() {
    server s(free_port());
    size_t before = 0;
    for (int i = 0; i < 6; i++) {
        ggml_backend_t b = connect_to(s.endpoint);
        computes(b);
        s.kill();
        CHECK(!error_of([&] { ggml_backend_synchronize(b); ggml_backend_buft_alloc_buffer(ggml_backend_get_default_buffer_type(b), 10); }).empty());
        ggml_backend_free(b);
        if (i == 0) {
            before = open_files();
        }
        CHECK(open_files() <= before);
        s.start();
    }
}

// a kernel that fails ends upstream's server; here it is an error like any other
void server_aborts() {
    server s(free_port());
    ggml_backend_t b = connect_to(s.endpoint);
    {
        net n;
        ggml_tensor * ids = n.tensor(GGML_TYPE_I32, 2);
        ggml_tensor * y = ggml_get_rows(n.ctx, n.tensor(GGML_TYPE_F32, 4, 10), ids);
        n.add(y);
        n.alloc(b);
        const int32_t bad[] = { 0, 10 };
        ggml_backend_tensor_set(ids, bad, 0, 8);
        CHECK_HAS(error_of([&] { ggml_backend_graph_compute(b, n.graph); get(y); }), "RPC server");
    }
    ggml_backend_free(b);
}

int serve(const char * port) {
    freopen("/dev/null", "w", stdout);
    freopen("/dev/null", "w", stderr);
    ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    ggml_backend_rpc_start_server((std::string("127.0.0.1:") + port).c_str(), nullptr, 1, 1, &cpu);
    return 1;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0) {
        alarm(120);
        return serve(argv[2]);
    }
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return run_cases(argc, argv, {
        { "killed_while_idle", killed_while_idle },
        { "old_and_new", old_and_new },
        { "killed_while_computing", killed_while_computing },
        { "nobody_there", nobody_there },
        { "cycles", cycles },
        { "server_aborts", server_aborts },
    });
}
