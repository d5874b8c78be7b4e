// Takes the place of transport.cpp in ggml-rpc, and includes it with two calls changed: connecting ends after some
// time, and does not leak the socket when it fails; sending to a server that is gone is an error and no SIGPIPE. A
// host that vanished is noticed, too.

#include "rpc/ggml_rpc_transport.h"

#include "transport.h"
#include "ggml-impl.h"

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    ifndef NOMINMAX
#        define NOMINMAX
#    endif
#    include <windows.h>
#    include <winsock2.h>
#else
#    include <arpa/inet.h>
#    include <cerrno>
#    include <fcntl.h>
#    include <netdb.h>
#    include <netinet/in.h>
#    include <netinet/tcp.h>
#    include <poll.h>
#    include <sys/socket.h>
#    include <sys/time.h>
#    include <sys/types.h>
#    include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>

#if defined(_WIN32)

pgg_rpc_handshake::pgg_rpc_handshake()  = default;
pgg_rpc_handshake::~pgg_rpc_handshake() = default;
void pgg_rpc_handshake::done() {}

#else

namespace {

constexpr int CONNECT_SECONDS   = 10;
constexpr int HANDSHAKE_SECONDS = 20;

thread_local int shaking_hands = 0;  // guards entered
thread_local int new_socket    = -1; // made since

void receive_within(int fd, int seconds) {
    const timeval t = { seconds, 0 }; // 0: forever
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
}

bool connected_in_time(int fd, const sockaddr * address, socklen_t size) {
    const int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (connect(fd, address, size) != 0) {
        pollfd p = { fd, POLLOUT, 0 };
        int error = errno;
        if (error == EINPROGRESS) {
            int n = 0;
            do {
                n = poll(&p, 1, CONNECT_SECONDS * 1000);
            } while (n < 0 && errno == EINTR);
            socklen_t length = sizeof(error);
            error = ETIMEDOUT;
            if (n > 0) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
            }
        }
        if (error != 0) {
            GGML_LOG_ERROR("cannot connect: %s\n", strerror(error));
            return false;
        }
    }
    fcntl(fd, F_SETFL, flags);
    return true;
}

int pgg_connect(int fd, const sockaddr * address, socklen_t size) {
    if (!connected_in_time(fd, address, size)) {
        close(fd);
        return -1;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#if defined(SO_NOSIGPIPE)
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
#if defined(TCP_KEEPIDLE) && defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
    const int idle = 20, interval = 10, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
#endif
    if (shaking_hands > 0) {
        receive_within(fd, HANDSHAKE_SECONDS);
        new_socket = fd;
    }
    return 0;
}

ssize_t pgg_send(int fd, const void * data, size_t size, int flags) {
#if defined(MSG_NOSIGNAL)
    flags |= MSG_NOSIGNAL;
#endif
    return send(fd, data, size, flags);
}

} // namespace

pgg_rpc_handshake::pgg_rpc_handshake() {
    shaking_hands++;
    new_socket = -1;
}

pgg_rpc_handshake::~pgg_rpc_handshake() {
    shaking_hands--;
    new_socket = -1; // closed already when the handshake failed
}

void pgg_rpc_handshake::done() {
    if (new_socket >= 0) {
        receive_within(new_socket, 0);
    }
}

// socket_t::connect and ::connect, the socket's send and RDMA's, told apart by their first argument
#define PGG_CONNECT_const  connect(const
#define PGG_CONNECT_sockfd pgg_connect(sockfd
#define connect(a, ...)    PGG_CONNECT_##a, __VA_ARGS__)
#define PGG_SEND_fd        pgg_send(fd
#define PGG_SEND_data      send(data
#define send(a, ...)       PGG_SEND_##a, __VA_ARGS__)

#endif

#include "transport.cpp"
