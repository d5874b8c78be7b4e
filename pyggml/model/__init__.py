"""GGUF models of llama.cpp: on one device, by layers, or split over a meta device.

===============  ====================================================================
``options``      how a model is loaded and run, checked before anything is
``loading``      llama.cpp's model and the meta device that it made
``context``      llama.cpp's context: a cache, and the graphs that run on it
``planning``     the plan of a model, from the header of its file
``model``        the handle that people use
===============  ====================================================================
"""

from .context import Batch, Context
from .model import Model
from .options import ContextOptions, ModelOptions
from .planning import plan_model

__all__ = ["Batch", "Context", "ContextOptions", "Model", "ModelOptions", "plan_model"]
