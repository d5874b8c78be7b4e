// Between ggml_rpc.cpp and ggml_rpc_transport.cpp.
#pragma once

// While one lives, a connection that this thread makes must answer in time; once it is done, it may take as long as it
// likes.
struct pgg_rpc_handshake {
    pgg_rpc_handshake();
    ~pgg_rpc_handshake();
    void done();
};
