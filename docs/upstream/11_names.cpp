// The names of a meta device and of its buffer type do not name the devices.
#include "repro.h"

int main() {
    problem p;
    p.leaf("w", GGML_TYPE_F32, 16);
    place_leaves(p, true);
    printf("device '%s', buffer type '%s', backend '%s'\n", ggml_backend_dev_name(p.meta),
        ggml_backend_buft_name(ggml_backend_dev_buffer_type(p.meta)), ggml_backend_name(p.backend));
}
