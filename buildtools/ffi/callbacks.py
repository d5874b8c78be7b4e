"""The C callbacks that Python functions may serve: pyggml/_ffi/callbacks.py holds their other half."""

from __future__ import annotations

from typing import NamedTuple


class Callback(NamedTuple):
    declaration: str  # of the C function that cffi makes
    part: str = ""  # the optional part of the build that its types need


CALLBACKS = (
    Callback(
        "_Bool pgg_py_split_policy(const struct ggml_tensor *, struct ggml_backend_meta_split_state *, void *)",
    ),
    Callback("void pgg_py_log_sink(int, const char *, void *)"),
    Callback("void pgg_py_node_observer(const struct ggml_tensor *, const void *, size_t, void *)"),
    Callback("_Bool pgg_py_abort(void *)"),
    Callback("_Bool pgg_py_sched_eval(struct ggml_tensor *, _Bool, void *)"),
    Callback("_Bool pgg_py_progress(float, void *)", part="llama"),
    Callback("void pgg_py_set_tensor(struct ggml_tensor *, void *)", part="llama"),
)
