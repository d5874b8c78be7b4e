"""GGUF models of llama.cpp: on one device, by layers, or split over a meta device.

==================  ====================================================================
``options``         how a model is loaded and run, checked before anything is
``loading``         llama.cpp's model and the meta device that it made
``native_context``  llama.cpp's context: what contexts and plans share
``planning``        the plan of a model, from the header of its file
``checking``        all that is wrong with a model's split at once, from the header of its file
``context``         decoding, generating, embeddings, states, sequences
``chat``            chat templates, conversations
``batch``, ``sampling``, ``vocabulary``, ``adapters``, ``memory``, ``state``: one thing each, for contexts
``model``           the handle that people use
==================  ====================================================================
"""

from .adapters import Adapter
from .batch import Batch
from .chat import Chat
from .checking import check_model
from .context import Context, GeneratedToken
from .memory import MemoryUse
from .model import Model
from .options import ContextOptions, ModelOptions
from .planning import plan_model
from .sampling import GREEDY, Sampler, SamplerOptions
from .vocabulary import Vocabulary

__all__ = [
    "GREEDY",
    "Adapter",
    "Batch",
    "Chat",
    "Context",
    "ContextOptions",
    "GeneratedToken",
    "MemoryUse",
    "Model",
    "ModelOptions",
    "Sampler",
    "SamplerOptions",
    "Vocabulary",
    "check_model",
    "plan_model",
]
