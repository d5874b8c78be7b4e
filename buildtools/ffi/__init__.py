"""Generates the bindings from the headers of the pinned llama.cpp and from native/pyggml.h. See gen_ffi.py."""
