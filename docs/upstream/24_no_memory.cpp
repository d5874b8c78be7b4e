// A device without memory for its part of a graph: an assertion, where a single device answers NULL.
#include "repro.h"

int main() {
    problem p;
    p.devices = make_devices(2);
    p.leaf("w", GGML_TYPE_F32, 16);
    place_leaves(p, true);
    p.devices[1]->buft.iface.alloc_buffer = [](ggml_backend_buffer_type_t, size_t) -> ggml_backend_buffer_t { return nullptr; };
    ggml_backend_buffer_t b = ggml_backend_buft_alloc_buffer(&p.devices[1]->buft, 1024);
    printf("single device: %s\n", b ? "a buffer" : "NULL");
    fflush(stdout);
    b = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(p.meta), 1024);
    printf("meta device: %s\n", b ? "a buffer" : "NULL");
}
