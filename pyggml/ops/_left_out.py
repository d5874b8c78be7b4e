"""Functions of ggml.h that return a tensor and are no operation here: how they are spelled, or why they are missing.

A test compares this with the header.
"""

from __future__ import annotations

__all__ = ["LEFT_OUT", "SPELLED"]

SPELLED: dict[str, str] = {
    **{f"ggml_reshape_{n}d": "reshape" for n in (1, 2, 3, 4)},
    **{f"ggml_view_{n}d": "view" for n in (1, 2, 3, 4)},
    **{f"ggml_cont_{n}d": "cont" for n in (1, 2, 3, 4)},
    **{f"ggml_set_{n}d": "set" for n in (1, 2)},
    **{f"ggml_set_{n}d_inplace": "set" for n in (1, 2)},
    "ggml_view_tensor": "view",
}
"""C functions that an operation of another name does: the number of axes follows from the arguments.

A function ``ggml_x_inplace`` is ``x(..., inplace=True)`` and not listed.
"""

_GRADIENT = "computes a gradient: training is out of scope"
_OPTIMIZER = "belongs to ggml's optimizer: training is out of scope"
_OLD = "deprecated by ggml: use ops.{}"
_CUSTOM = "runs a C function of the caller in the CPU backend: no other device can, and no split is known for it"
_MAKES = "makes a tensor without an operation: Graph.input and Weights do"
_LOOKS = "finds a tensor that exists: Graph and Weights know theirs"
_WRITES = "writes into a tensor in host memory: Graph.run and Weights do, on any device"

LEFT_OUT: dict[str, str] = {
    "ggml_add1": _OLD.format("add"),
    "ggml_add1_inplace": _OLD.format("add"),
    "ggml_rope_custom": _OLD.format("rope_ext"),
    "ggml_rope_custom_inplace": _OLD.format("rope_ext"),
    "ggml_upscale_ext": _OLD.format("interpolate"),
    "ggml_repeat_back": _GRADIENT,
    "ggml_silu_back": _GRADIENT,
    "ggml_rms_norm_back": _GRADIENT,
    "ggml_get_rows_back": _GRADIENT,
    "ggml_soft_max_ext_back": _GRADIENT,
    "ggml_soft_max_ext_back_inplace": _GRADIENT,
    "ggml_rope_ext_back": _GRADIENT,
    "ggml_rope_multi_back": _GRADIENT,
    "ggml_im2col_back": _GRADIENT,
    "ggml_pool_2d_back": _GRADIENT,
    "ggml_flash_attn_back": _GRADIENT,
    "ggml_cross_entropy_loss_back": _GRADIENT,
    "ggml_graph_get_grad": _GRADIENT,
    "ggml_graph_get_grad_acc": _GRADIENT,
    "ggml_opt_step_adamw": _OPTIMIZER,
    "ggml_opt_step_sgd": _OPTIMIZER,
    "ggml_opt_dataset_data": _OPTIMIZER,
    "ggml_opt_dataset_labels": _OPTIMIZER,
    "ggml_opt_grad_acc": _OPTIMIZER,
    "ggml_opt_inputs": _OPTIMIZER,
    "ggml_opt_labels": _OPTIMIZER,
    "ggml_opt_loss": _OPTIMIZER,
    "ggml_opt_ncorrect": _OPTIMIZER,
    "ggml_opt_outputs": _OPTIMIZER,
    "ggml_opt_pred": _OPTIMIZER,
    "ggml_map_custom1": _CUSTOM,
    "ggml_map_custom1_inplace": _CUSTOM,
    "ggml_map_custom2": _CUSTOM,
    "ggml_map_custom2_inplace": _CUSTOM,
    "ggml_map_custom3": _CUSTOM,
    "ggml_map_custom3_inplace": _CUSTOM,
    "ggml_custom_4d": _CUSTOM,
    "ggml_custom_inplace": _CUSTOM,
    "ggml_new_tensor": _MAKES,
    "ggml_new_tensor_1d": _MAKES,
    "ggml_new_tensor_2d": _MAKES,
    "ggml_new_tensor_3d": _MAKES,
    "ggml_new_tensor_4d": _MAKES,
    "ggml_new_f32": _MAKES,
    "ggml_new_i32": _MAKES,
    "ggml_dup_tensor": _MAKES,
    "ggml_get_first_tensor": _LOOKS,
    "ggml_get_next_tensor": _LOOKS,
    "ggml_get_tensor": _LOOKS,
    "ggml_graph_get_tensor": _LOOKS,
    "ggml_graph_node": _LOOKS,
    "ggml_build_forward_select": "leaves out branches when a graph is built: Python's if does",
    "ggml_set_name": "Tensor.rename does",
    "ggml_format_name": "variadic: Tensor.rename does",
    "ggml_set_zero": _WRITES,
    "ggml_set_f32": _WRITES,
    "ggml_set_i32": _WRITES,
}
