"""pyggml: ggml's meta backend from Python. Combine devices, split tensors, see the plan, run, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._about import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from . import ops as ops
    from . import testing as testing
    from ._ffi import lib as lib
    from ._info import build_info as build_info
    from .buffer import BufferType as BufferType
    from .buffer import host_buffer_type as host_buffer_type
    from .comparison import Comparison as Comparison
    from .comparison import ComparisonError as ComparisonError
    from .comparison import compare as compare
    from .comparison import nmse as nmse
    from .device import Device as Device
    from .device import cpu as cpu
    from .device import devices as devices
    from .device import get_device as get_device
    from .device import parse_devices as parse_devices
    from .device import rpc as rpc
    from .device import simulated as simulated
    from .device import twin as twin
    from .device import virtual_cpus as virtual_cpus
    from .dtype import DType as DType
    from .dtype import QuantizedArray as QuantizedArray
    from .dtype import as_dtype as as_dtype
    from .dtype import dequantize as dequantize
    from .dtype import quantize as quantize
    from .errors import (
        ArgumentError as ArgumentError,
    )
    from .errors import (
        BusyError as BusyError,
    )
    from .errors import (
        ClosedError as ClosedError,
    )
    from .errors import (
        DeviceError as DeviceError,
    )
    from .errors import (
        DeviceLostError as DeviceLostError,
    )
    from .errors import (
        DeviceNotFoundError as DeviceNotFoundError,
    )
    from .errors import (
        DTypeError as DTypeError,
    )
    from .errors import (
        Error as Error,
    )
    from .errors import (
        FileFormatError as FileFormatError,
    )
    from .errors import (
        ForkError as ForkError,
    )
    from .errors import (
        GGMLAbort as GGMLAbort,
    )
    from .errors import (
        IndexRangeError as IndexRangeError,
    )
    from .errors import (
        ModelError as ModelError,
    )
    from .errors import (
        ModelNotFoundError as ModelNotFoundError,
    )
    from .errors import (
        NativeError as NativeError,
    )
    from .errors import (
        OutOfMemoryError as OutOfMemoryError,
    )
    from .errors import (
        PoisonedError as PoisonedError,
    )
    from .errors import (
        ShapeError as ShapeError,
    )
    from .errors import (
        SplitError as SplitError,
    )
    from .errors import (
        UnsupportedError as UnsupportedError,
    )
    from .graph import Graph as Graph
    from .meta import MetaDevice as MetaDevice
    from .model import GREEDY as GREEDY
    from .model import Adapter as Adapter
    from .model import Batch as Batch
    from .model import Context as Context
    from .model import ContextOptions as ContextOptions
    from .model import Model as Model
    from .model import ModelOptions as ModelOptions
    from .model import Sampler as Sampler
    from .model import SamplerOptions as SamplerOptions
    from .model import check_model as check_model
    from .model import plan_model as plan_model
    from .model_comparison import ModelComparison as ModelComparison
    from .model_comparison import NodeComparison as NodeComparison
    from .model_comparison import compare_models as compare_models
    from .model_comparison import compare_nodes as compare_nodes
    from .plan import CheckReport as CheckReport
    from .plan import SplitPlan as SplitPlan
    from .plan import Violation as Violation
    from .plan.diff import PlanDiff as PlanDiff
    from .rules_file import load_rules as load_rules
    from .rules_file import rules_from_json as rules_from_json
    from .rules_file import rules_to_json as rules_to_json
    from .rules_file import rules_to_toml as rules_to_toml
    from .rules_file import save_rules as save_rules
    from .split import Rule as Rule
    from .split import Segment as Segment
    from .split import Split as Split
    from .split import SplitState as SplitState
    from .split import TensorInfo as TensorInfo
    from .split import rule as rule
    from .tensor import Tensor as Tensor
    from .tracing import Trace as Trace
    from .tracing import trace as trace
    from .weights import Weights as Weights

# Names are loaded when they are first used: `import pyggml` costs little, `pyggml --help` less.
_HOMES = {
    "_info": ("build_info",),
    "buffer": ("BufferType", "host_buffer_type"),
    "comparison": ("Comparison", "ComparisonError", "compare", "nmse"),
    "device": ("Device", "cpu", "devices", "get_device", "parse_devices", "rpc", "simulated", "twin", "virtual_cpus"),
    "dtype": ("DType", "QuantizedArray", "as_dtype", "dequantize", "quantize"),
    "graph": ("Graph",),
    "meta": ("MetaDevice",),
    "model": (
        "GREEDY", "Adapter", "Batch", "Context", "ContextOptions", "Model", "ModelOptions", "Sampler", "SamplerOptions", "check_model",
        "plan_model",
    ),
    "model_comparison": ("ModelComparison", "NodeComparison", "compare_models", "compare_nodes"),
    "plan": ("CheckReport", "SplitPlan", "Violation"),
    "plan.diff": ("PlanDiff",),
    "rules_file": ("load_rules", "rules_from_json", "rules_to_json", "rules_to_toml", "save_rules"),
    "split": ("Rule", "Segment", "Split", "SplitState", "TensorInfo", "rule"),
    "tensor": ("Tensor",),
    "tracing": ("Trace", "trace"),
    "weights": ("Weights",),
    "errors": (
        "ArgumentError", "BusyError", "ClosedError", "DTypeError", "DeviceError", "DeviceLostError",
        "DeviceNotFoundError", "Error", "FileFormatError", "ForkError", "GGMLAbort", "IndexRangeError", "ModelError",
        "ModelNotFoundError", "NativeError", "OutOfMemoryError", "PoisonedError", "ShapeError", "SplitError",
        "UnsupportedError",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("ops", "testing", "errors", "lib", "ffi")

__all__ = ["__version__", *_HOME_OF, "errors", "lib", "ops", "testing"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    elif name in ("lib", "ffi"):
        value = getattr(importlib.import_module("._ffi", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'pyggml' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
