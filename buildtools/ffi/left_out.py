"""What is declared or exported but not in pyggml.lib, each with its reason. A test fails on entries without need."""

from __future__ import annotations

# Functions that the bound headers declare.
FUNCTIONS: dict[str, str] = {
    "ggml_abort": "variadic, and it ends the process: raise an exception instead",
    "ggml_format_name": "variadic: format in Python and call ggml_set_name",
    "ggml_backend_buffer_init": "takes a struct of ggml's internal header by value: buffers are made by their types",
    "ggml_threadpool_get_n_threads": "declared in ggml-cpu.h, but nowhere defined",
}

_KERNEL = "a kernel of the CPU backend, with parameters of internal headers: compute a graph instead"
_INTERNAL = "declared in an internal header of ggml only"
_BINDING = "part of the binding itself (native/base/guard.h)"

# Symbols that the libraries export and no bound header declares, as fnmatch patterns.
SYMBOLS: dict[str, str] = {
    "ggml_compute_forward_*": _KERNEL,
    "ggml_gemm_*": _KERNEL,
    "ggml_gemv_*": _KERNEL,
    "ggml_vec_*": _KERNEL,
    "ggml_quantize_mat_*": _KERNEL,
    "ggml_table_*": "a look-up table of the CPU backend's kernels",
    "ggml_cpu_extra_*": _KERNEL,
    "ggml_tiled_wdata_size": _KERNEL,
    "ggml_barrier": "for the threads of the CPU backend",
    "ggml_threadpool_chunk_*": "for the threads of the CPU backend",
    "ggml_critical_section_*": "ggml's own lock",
    "ggml_aligned_*": _INTERNAL,
    "ggml_can_fuse_subgraph_ext": _INTERNAL,
    "ggml_graph_next_uid": _INTERNAL,
    "ggml_graph_view": _INTERNAL,
    "ggml_hash_*": _INTERNAL,
    "ggml_op_can_inplace": _INTERNAL,
    "ggml_log_internal": "variadic; use Python's logging",
    "ggml_log_callback_default": "writes to stderr; use Python's logging",
    "ggml_print_backtrace": _INTERNAL,
    "pgg_thread": _BINDING,
    "pgg_call_news": _BINDING,
    "pgg_call_enter": _BINDING,
}

_REGISTRY = "a backend that only some builds have: its devices are found by the registry (ggml_backend_dev_by_name)"

# The same for the libraries of backends that are not always built: part of the library's name -> patterns.
BACKENDS: dict[str, dict[str, str]] = {
    "ggml-blas": {"ggml_backend_blas_*": _REGISTRY, "ggml_backend_is_blas": _REGISTRY},
    "ggml-cuda": {"ggml_backend_cuda_*": _REGISTRY, "ggml_backend_is_cuda": _REGISTRY},
    "ggml-hip": {"ggml_backend_cuda_*": _REGISTRY, "ggml_backend_is_cuda": _REGISTRY},
    "ggml-metal": {"ggml_backend_metal_*": _REGISTRY, "ggml_backend_is_metal": _REGISTRY, "ggml_metal_*": _INTERNAL},
    "ggml-vulkan": {"ggml_backend_vk_*": _REGISTRY, "ggml_backend_is_vk": _REGISTRY},
}
