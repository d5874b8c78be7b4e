"""Compute graphs: built from tensors, planned, run, and copied to other devices."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _indices
from ._arguments import tensor_name, whole
from ._ffi import ffi, lib, non_null
from ._ffi.callbacks import Callback
from ._ffi.interrupts import Held
from ._ffi.spans import span
from ._handle import Borrowed, Handle
from .device import Device, default_threads
from .dtype import DTypeLike, as_dtype
from .errors import ArgumentError, ClosedError, DeviceError, Error, OutOfMemoryError, ShapeError, UnsupportedError
from .meta import (
    MetaDevice,
    Target,
    capacities_of,
    check_device_open,
    check_target,
    communicator_of,
    on_device,
    refuse_simulated,
    target_devices,
    twins,
)
from .plan import SplitPlan
from .tensor import MAX_ELEMENTS, Tensor, as_bytes, read_tensor
from .weights import Weights

if TYPE_CHECKING:
    from .plan.check import CheckReport
    from .split import Rule

__all__ = ["Graph"]

_MAX_SIZE = 1 << 24  # tensors of one graph: 6 GB of their descriptions

_current: ContextVar[Graph | None] = ContextVar("pyggml_graph", default=None)


class Graph(Handle):
    """A compute graph on a device, usually a `MetaDevice`.

    Nodes are made by operators and ops on tensors, in any order; ``output`` names what is wanted. The first ``run``
    allocates; from then on no nodes can be added, and ``run`` can be called any number of times.

    Args:
        device: where it runs; words such as ``"cpu"`` for a single device.
        size: the largest number of tensors.
        threads: for a plain CPU device; None: all cores.
    """

    is_graph = True

    def __init__(self, device: Target | str, *, size: int = 8192, threads: int | None = None) -> None:
        self.device = device = check_target("Graph", device)
        self._size = size = whole("Graph: size", size, 1, _MAX_SIZE)
        if threads is not None:
            threads = whole("Graph: threads", threads, 1, 512)
        dev = device.ptr
        ctx = lib.ggml_init(
            {
                "mem_size": lib.ggml_tensor_overhead() * (size + 1) + lib.ggml_graph_overhead_custom(size, False),
                "mem_buffer": ffi.NULL,
                "no_alloc": True,
            }
        )
        non_null(ctx, "ggml_init failed", OutOfMemoryError)
        self._state = _State(ctx)
        self._simulated = any(d.is_simulated for d in target_devices(device))
        self._own(_State.free, self._state)
        self._ctx = ctx
        self._nodes: dict[int, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._observers: list[Callback] = []
        self._weights: dict[int, Weights] = {}
        self._checks: list[_indices.IndexCheck] = []
        self._cgraph: Any = None
        self._ports: dict[str, _Port] = {}  # of the inputs
        self._results: dict[str, _Port] = {}  # of the outputs, once placed
        self._token: Token[Graph | None] | None = None
        try:
            refused = f"device {device.name} cannot be started"  # made now: asking for a name is a call, too
            with on_device(device), Held():
                self._state.backend = non_null(lib.ggml_backend_dev_init(dev, ffi.NULL), refused, DeviceError)
            if isinstance(device, Device) and device.type == "cpu":
                lib.ggml_backend_cpu_set_n_threads(self._state.backend, threads or default_threads())
                lib.ggml_backend_cpu_set_abort_callback(self._state.backend, lib.pgg_interrupt_abort, ffi.NULL)
        except BaseException:
            self.close()
            raise

    # building

    @classmethod
    def current(cls) -> Graph | None:
        """The graph of the innermost ``with`` block."""
        return _current.get()

    def __enter__(self) -> Graph:
        self._check_open()
        self._token = _current.set(self)
        return self

    def __exit__(self, *details: Any) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        self.close()

    def input(self, name: str, ne: tuple[int, ...] | list[int], dtype: DTypeLike = "f32") -> Tensor:
        """A tensor that every ``run`` is given.

        Args:
            ne: elements along each axis in ggml's order; numpy sees them reversed: ne (64, 8) is an array (8, 64).

        Raises:
            ShapeError: more than 4 axes, or one without elements. ArgumentError: the name is taken or too long.
        """
        with self._building():
            return self._input(name, ne, dtype)

    def _input(self, name: str, ne: tuple[int, ...] | list[int], dtype: DTypeLike) -> Tensor:
        tensor_name(name)
        kind = as_dtype(dtype)
        if not isinstance(ne, (tuple, list)):
            raise ArgumentError(f"input {name!r}: ne must be a tuple of sizes, got {ne!r:.80}")
        dims = [whole(f"input {name!r}: ne[{i}]", n, -(1 << 63), 1 << 200) for i, n in enumerate(ne)]
        if not 1 <= len(dims) <= 4 or any(n < 1 for n in dims):
            raise ShapeError(f"input {name!r} with ne {dims}: 1 to 4 axes of at least one element are possible")
        if math.prod(dims) > MAX_ELEMENTS:
            raise ShapeError(f"input {name!r} with ne {dims}: more than 2^48 elements, ggml's own arithmetic would overflow")
        if dims[0] % kind.block_size:
            raise ShapeError(f"input {name!r}: ne[0]={dims[0]} is no multiple of {kind.block_size}, the block of {kind}")
        if name in self._inputs:
            raise ArgumentError(f"there is an input {name!r} already")
        tensor = self._node(lib.ggml_new_tensor(self._ctx, kind.type_id, len(dims), dims))
        self._rename(tensor, name)
        lib.ggml_set_input(tensor.ptr)
        self._inputs[name] = tensor
        return tensor

    def output(self, name: str, tensor: Tensor) -> Tensor:
        """Names a tensor whose value ``run`` returns, and gives it that name."""
        with self._building():
            return self._output(name, tensor)

    def _output(self, name: str, tensor: Tensor) -> Tensor:
        tensor_name(name)
        ptr = self._adopt(tensor)
        if name in self._outputs:
            raise ArgumentError(f"there is an output {name!r} already")
        if tensor.owner is not self or ptr.op == lib.GGML_OP_NONE or any(tensor is other for other in self._outputs.values()):
            # a weight or an input is no node, and a node has one name: a copy of it has its own
            tensor = self._node(lib.ggml_cont(self._ctx, ptr))
            ptr = tensor.ptr
        self._rename(tensor, name)
        self._keep(ptr)
        self._outputs[name] = tensor
        return tensor

    @staticmethod
    def _keep(ptr: Any) -> None:
        lib.ggml_set_output(ptr)
        if ptr.view_src != ffi.NULL:
            lib.ggml_set_output(ptr.view_src)  # the allocator only looks at the memory's owner

    def _check_open(self) -> None:
        super()._check_open()
        check_device_open(self, self.device)
        for weights in self._weights.values():
            if weights.closed:
                raise ClosedError(f"the weights of this Graph ({', '.join(list(weights)[:3])}, …) are closed: close them after it")

    def _building(self) -> AbstractContextManager[None]:
        """A context in which this thread, and no other, adds to the graph: ggml takes memory for nodes without a lock."""
        self._check_building()
        return self._in_use(poisons=False)

    def _check_building(self) -> None:
        self._check_open()
        if self._cgraph is not None:
            raise ArgumentError("this graph has run and its tensors are placed: no nodes can be added; make a new Graph")
        if len(self._nodes) >= self._size:
            raise ArgumentError(f"this graph has room for {self._size} tensors: Graph(device, size=...) takes more")

    def _node(self, ptr: Any) -> Tensor:
        non_null(ptr, "ggml made no node")
        key = int(ffi.cast("uintptr_t", ptr))
        if key not in self._nodes:
            self._nodes[key] = Tensor(self, ptr)
        return self._nodes[key]

    def _adopt(self, tensor: Tensor) -> Any:
        self._check_building()
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"expected a tensor of this graph or of weights, got {type(tensor).__name__}")
        owner = tensor.owner
        if owner is self:
            return tensor.ptr
        if isinstance(owner, Weights):
            if owner.device is not self.device and owner.device.ptr != self.device.ptr:
                raise ArgumentError(
                    f"weight {tensor.name!r} is on {owner.device.name}, the graph on {self.device.name}: place both on the same device"
                    + (", one MetaDevice: each has rules of its own" if owner.device.name == self.device.name else "")
                )
            self._weights[id(owner)] = owner
            return tensor.ptr
        raise ArgumentError(f"tensor {tensor.name!r} belongs to another graph; make it an input of this one")

    def _rename(self, tensor: Tensor, name: str) -> None:
        lib.ggml_set_name(tensor.ptr, tensor_name(name))

    # what there is

    @property
    def n_devices(self) -> int:
        """Devices of the meta device; 0 on a plain one."""
        return self.device.n_devices if isinstance(self.device, MetaDevice) else 0

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The inputs by name."""
        return dict(self._inputs)

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """The outputs by name."""
        return dict(self._outputs)

    def nodes(self) -> list[Tensor]:
        """The nodes that the outputs need, in the order in which they are computed."""
        self._check_open()
        if self._cgraph is not None:
            graph = self._cgraph
            return [self._node(lib.ggml_graph_node(graph, i)) for i in range(lib.ggml_graph_n_nodes(graph))]
        with _Expanded(self) as graph:
            return [self._node(lib.ggml_graph_node(graph, i)) for i in range(lib.ggml_graph_n_nodes(graph))]

    # running

    def _expand(self, graph: Any) -> None:
        if not self._outputs:
            raise ArgumentError("this graph has no output: name one with graph.output(name, tensor)")
        for tensor in self._outputs.values():
            lib.ggml_build_forward_expand(graph, tensor.ptr)

    def _allocate(self) -> None:
        if self._cgraph is not None:
            return
        graph = lib.ggml_new_graph_custom(self._ctx, self._size, False)
        self._expand(graph)
        if isinstance(self.device, Device):
            self._check_supported(graph)
        self._check_offsets(graph)
        self._checks = _indices.checks(self, graph)
        buft = lib.ggml_backend_dev_buffer_type(self.device.ptr)
        with Held():
            self._state.galloc = non_null(lib.ggml_gallocr_new(buft), "no graph allocator", OutOfMemoryError)
        short = f"{self.device.name} has not enough memory for the graph's tensors"  # made now: asking for a name is a call, too
        if not lib.ggml_gallocr_alloc_graph(self._state.galloc, graph):
            non_null(ffi.NULL, short, OutOfMemoryError)
        self._cgraph = graph
        self._results = {name: _Port(name, tensor) for name, tensor in self._outputs.items()}

    def _check_supported(self, graph: Any) -> None:
        for i in range(lib.ggml_graph_n_nodes(graph)):
            node = lib.ggml_graph_node(graph, i)
            if not lib.ggml_backend_dev_supports_op(self.device.ptr, node):
                tensor = self._node(node)
                raise UnsupportedError(
                    f"device {self.device.name} does not support node {tensor.name!r} ({tensor.op}, {tensor.dtype}, ne {list(tensor.ne)}) "
                    f"of {', '.join(f'{s.name!r} {s.dtype} ne {list(s.ne)}' for s in self._sources(node))}: use another type or device"
                )

    def _check_offsets(self, graph: Any) -> None:
        """ggml-vulkan's ROPE reads positions and factors from the aligned address in front of a view that begins elsewhere."""
        alignment, name = max(((d.buffer_type.alignment, d.name) for d in target_devices(self.device) if d.backend == "Vulkan"), default=(1, ""))
        if alignment == 1:
            return
        for i in range(lib.ggml_graph_n_nodes(graph)):
            node = lib.ggml_graph_node(graph, i)
            for source in (node.src[1], node.src[2]) if node.op == lib.GGML_OP_ROPE else ():
                if source != ffi.NULL and source.view_src != ffi.NULL and source.view_offs % alignment:
                    raise UnsupportedError(
                        f"ROPE node {self._node(node).name!r} takes {Tensor(self, source).name!r}, a view that begins {source.view_offs} bytes behind its start, and "
                        f"{name} reads only from multiples of {alignment}: use .cont() on it"
                    )

    def _sources(self, node: Any) -> list[Tensor]:
        return [Tensor(self, s) for s in node.src if s != ffi.NULL]

    def run(self, inputs: Mapping[str, Any] | None = None, /, **more: Any) -> dict[str, npt.NDArray[Any]]:
        """Computes the outputs.

        Args:
            inputs: every input's value by name (also as keywords): arrays in numpy's order, or `QuantizedArray`.

        Returns:
            The outputs by name, whole, in numpy's order.

        Raises:
            ArgumentError: an input is missing or unknown. ShapeError, DTypeError: a value does not fit.
            IndexRangeError: a row or expert index is out of range. SplitError: the split is illegal.
        """
        if inputs is not None and type(inputs) is not dict and not isinstance(inputs, Mapping):
            raise ArgumentError(f"run() takes a dict of values by input name, got {type(inputs).__name__}")
        with span("Graph.run"):
            return self._run({**inputs, **more} if inputs else more)

    def _run(self, given: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        self._check_open()
        if given.keys() != self._inputs.keys():
            if unknown := set(given) - set(self._inputs):
                raise ArgumentError(f"no input {sorted(unknown)[0]!r}; the inputs are {', '.join(self._inputs) or 'none'}")
            raise ArgumentError(f"the input {sorted(set(self._inputs) - set(given))[0]!r} is missing")
        if len(self._ports) != len(self._inputs):
            self._ports = {name: _Port(name, tensor) for name, tensor in self._inputs.items()}
        values = {name: port.contiguous(given[name]) for name, port in self._ports.items()}
        if self._cgraph is None:
            with _Expanded(self) as graph:
                checks = _indices.checks(self, graph)
        else:
            checks = self._checks
        for check in checks:
            check.verify(values)
        with self._in_use(), Borrowed(self._stands_on()):
            self._allocate()
            if not self._simulated:
                for name, port in self._ports.items():
                    port.write(values[name])
                self._compute()
                return {name: port.read() for name, port in self._results.items()}
        refuse_simulated(self.device, "nothing was computed")
        raise AssertionError  # not reached: the line before raises

    def _index_limits(self) -> dict[str, int]:
        """For every input that holds row or expert indices: what they must be below."""
        self._check_open()
        with _Expanded(self) as graph:
            checks = _indices.checks(self, graph)
        limits: dict[str, int] = {}
        for check in checks:
            limits[check.root] = min(check.limit, limits.get(check.root, check.limit))
        return limits

    def _check_readable(self, tensor: Tensor) -> None:
        refuse_simulated(self.device, f"tensor {tensor.name!r} has no value")
        ptr = tensor.ptr
        root = ptr.view_src if ptr.view_src != ffi.NULL else ptr
        if self._cgraph is not None and not root.flags & lib.GGML_TENSOR_FLAG_OUTPUT and root.buffer != ffi.NULL:
            raise ArgumentError(
                f"{tensor.name!r} is no output of this graph: its memory is used again while the graph runs. "
                "Name it with graph.output(name, tensor), or see every node with graph.observed(...)"
            )

    def _stands_on(self) -> list[Handle]:
        """What must not be closed while it runs."""
        below: list[Handle] = list(self._weights.values())
        if isinstance(self.device, MetaDevice):
            below.append(self.device)
        return below

    def _reading(self) -> AbstractContextManager[None]:
        return self._in_use(poisons=False)  # a run writes what is read

    @contextlib.contextmanager
    def observed(self, observer: Callable[[str, str, bytes], object]) -> Iterator[None]:
        """While it lasts, runs of this graph call ``observer(name, op, value)`` for every node with its whole value as bytes.

        The nodes are read where they are computed, and on CPUs and virtual CPUs the results are the same to the bit. Nodes
        that are computed in one kernel with the next one are reported as that one. ggml-vulkan has more such kernels (the
        choice of experts) and rounds differently when it is watched: NMSE up to 1.2e-9 was measured.
        The meta device is locked meanwhile: an observer that waits for another thread which uses it waits forever.

        Raises:
            UnsupportedError: the graph is not on a meta device. ArgumentError: the observer is no function.
        """
        self._check_open()
        if not callable(observer):
            raise ArgumentError(f"observed(): the observer must be a function of (name, op, value), got {type(observer).__name__}")
        if not isinstance(self.device, MetaDevice):
            raise UnsupportedError(f"nodes are observed on meta devices; this graph is on {self.device.name}: use MetaDevice([device])")

        def seen(node: Any, data: Any) -> None:
            observer(ffi.string(node.name).decode(), ffi.string(lib.ggml_op_desc(node)).decode(), bytes(data))

        with Callback("node_observer", seen) as callback:
            self._observers.append(callback)
            try:
                yield
            finally:
                self._observers.remove(callback)

    def _compute(self) -> None:
        if not self._observers:
            status = lib.ggml_backend_graph_compute(self._state.backend, self._cgraph)
        else:
            with contextlib.ExitStack() as stack:
                for callback in self._observers:
                    lib.pgg_meta_observe(self.device.ptr, callback.function, callback.user_data)
                    stack.callback(lib.pgg_meta_observe, self.device.ptr, ffi.NULL, ffi.NULL)
                status = lib.ggml_backend_graph_compute(self._state.backend, self._cgraph)
        if status != lib.GGML_STATUS_SUCCESS:
            text = ffi.string(lib.ggml_status_to_string(status)).decode()
            raise DeviceError(f"{self.device.name} did not compute the graph: {text}")

    # copies on other devices

    def replica(self, device: Target, *, values: bool = True, keep_all: bool = False) -> Graph:
        """The same graph on another device.

        Args:
            values: copy the weights' values; without, they are only placed (enough for a plan).
            keep_all: every node can be read after a run, at the cost of memory.
        """
        self._check_open()
        copy = Graph(device, size=self._size)
        try:
            self._copy_to(copy, values, keep_all)
        except BaseException:
            copy.close()
            raise
        return copy

    def _copy_to(self, copy: Graph, values: bool, keep_all: bool) -> None:
        with Borrowed([self, *self._stands_on()]):
            self._copy_nodes(copy, values, keep_all)

    def _copy_nodes(self, copy: Graph, values: bool, keep_all: bool) -> None:
        known: dict[int, Any] = {}

        def key(ptr: Any) -> int:
            return int(ffi.cast("uintptr_t", ptr))

        for weights in self._weights.values():
            twin = Weights.empty(copy.device, {name: (t.dtype, t.ne) for name, t in weights.items()})
            copy._weights[id(twin)] = twin
            for name, tensor in weights.items():
                known[key(tensor.ptr)] = twin[name].ptr
                if values:
                    raw = np.empty(tensor.nbytes, np.uint8)
                    lib.ggml_backend_tensor_get(tensor.ptr, ffi.from_buffer(raw), 0, raw.nbytes)
                    lib.ggml_backend_tensor_set(twin[name].ptr, ffi.from_buffer(raw), 0, raw.nbytes)

        size = ffi.sizeof("struct ggml_tensor")

        def copied(old: Any) -> Any:
            # depth first without recursion: a chain may have thousands of nodes
            stack = [old]
            while stack:
                top = stack[-1]
                if key(top) in known:
                    stack.pop()
                    continue
                needed = [s for s in (*top.src, top.view_src) if s != ffi.NULL and s != top and key(s) not in known]
                if needed:
                    stack += needed
                    continue
                new = copy._node(lib.ggml_new_tensor(copy._ctx, top.type, 4, list(top.ne))).ptr
                ffi.memmove(new, top, size)
                new.buffer = new.data = new.extra = ffi.NULL
                for i, source in enumerate(top.src):
                    if source != ffi.NULL:
                        new.src[i] = new if source == top else known[key(source)]
                if top.view_src != ffi.NULL:
                    new.view_src = known[key(top.view_src)]
                known[key(top)] = new
                stack.pop()
            return known[key(old)]

        for name, tensor in self._inputs.items():
            copy._inputs[name] = copy._node(copied(tensor.ptr))
        for name, tensor in self._outputs.items():
            copy._outputs[name] = copy._node(copied(tensor.ptr))
        if keep_all:
            for tensor in copy.nodes():
                copy._keep(tensor.ptr)

    def plan(self) -> SplitPlan:
        """What ggml would do, without running it or taking memory of a device.

        ggml's own inference runs on simulated twins of the devices. On a plain device the plan has that one device.

        Raises:
            SplitError: the split is illegal; the node, its sources and a legal repair are named.
        """
        self._check_open()
        meta = self.device.twin() if isinstance(self.device, MetaDevice) else MetaDevice(twins([self.device]))
        mine = set(meta.devices) - set(target_devices(self.device))
        try:
            with self.replica(meta, values=False) as copy:
                copy._allocate()
                lib.pgg_meta_capture_begin(meta.ptr)
                try:
                    copy._compute()
                finally:
                    text = lib.pgg_meta_capture_take(meta.ptr)
                captured = json.loads(ffi.string(text))
                lib.pgg_free(text)
                for weights in copy._weights.values():
                    weights.close()
            asked = {name: d.asked_shares for name, d in meta.decisions.items() if d.asked_shares}
            on = target_devices(self.device)
            plan = SplitPlan.from_captures(captured, asked=asked, rules=meta.rules, decisions=meta.decisions, communicator=communicator_of(on))
            return plan.with_capacities(capacities_of(on))
        finally:
            meta.close()
            for device in mine:
                device.release()

    def check(
        self, device: Target | None = None, *, rules: Iterable[Rule | tuple[str, str]] | None = None, repairs: bool = True
    ) -> CheckReport:
        """Everything that is wrong with the split at once, before anything is allocated; `plan` and `run` stop at the first.

        It is legal exactly when the graph can be placed and run, and every output be read, and says what one device says.

        Args:
            device: where it is to run; None: the graph's own device. The weights need not be there.
            rules: instead of those of the device.
            repairs: look for rules that would be legal, and try them.
        """
        from .graph_check import check_graph

        self._check_open()
        return check_graph(self, device, rules=rules, repairs=repairs)

    def __repr__(self) -> str:
        return "<Graph (closed)>" if self.closed else f"<Graph on {self.device.name}, {len(self._nodes)} tensors>"


class _Port:
    """An input or an output as a run needs it: looked up once, because a run of small nodes takes microseconds."""

    __slots__ = ("dtype", "name", "nbytes", "ne", "plain", "ptr", "shape")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.ptr, self.ne, self.shape, self.dtype = name, tensor.ptr, tensor.ne, tensor.shape, tensor.dtype
        self.nbytes = tensor.nbytes
        self.plain = self.dtype.numpy is not None and lib.ggml_is_contiguous(self.ptr)

    def contiguous(self, value: Any) -> npt.NDArray[Any]:
        """The value in one piece of memory and in the tensor's format; itself where it is that already."""
        if type(value) is np.ndarray and value.dtype == self.dtype.numpy and value.shape == self.shape and value.flags.c_contiguous:
            return value
        return as_bytes(value, self.ne, self.dtype, self.name)

    def write(self, value: npt.NDArray[Any]) -> None:
        if self.ptr.buffer != ffi.NULL:  # else no output needs it
            lib.ggml_backend_tensor_set(self.ptr, ffi.from_buffer(value), 0, self.nbytes)

    def read(self) -> npt.NDArray[Any]:
        if not self.plain:
            return read_tensor(self.ptr, self.dtype)
        out = np.empty(self.shape, self.dtype.numpy)
        lib.ggml_backend_tensor_get(self.ptr, ffi.from_buffer(out), 0, self.nbytes)
        return out


class _State:
    """What a graph owns of C; freed without the graph."""

    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx
        self.backend: Any = ffi.NULL
        self.galloc: Any = ffi.NULL

    def free(self) -> None:
        if self.backend != ffi.NULL:
            with contextlib.suppress(Error):  # what is queued fails on a device that is lost; that was told, or nobody waits for it
                lib.ggml_backend_synchronize(self.backend)
        if self.galloc != ffi.NULL:
            lib.ggml_gallocr_free(self.galloc)
        if self.backend != ffi.NULL:
            lib.ggml_backend_free(self.backend)
        lib.ggml_free(self.ctx)


class _Expanded:
    """The graph's nodes in order, in memory of its own: looking at a graph leaves no trace in it, and it stays open meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __enter__(self) -> Any:
        self.graph._lend()
        try:
            return self._expanded()
        except BaseException:
            self.graph._give_back()
            raise

    def _expanded(self) -> Any:
        size = lib.ggml_graph_overhead_custom(self.graph._size, False) + lib.ggml_tensor_overhead()
        self.ctx = non_null(lib.ggml_init({"mem_size": size, "mem_buffer": ffi.NULL, "no_alloc": True}), "ggml_init failed", OutOfMemoryError)
        try:
            graph = lib.ggml_new_graph_custom(self.ctx, self.graph._size, False)
            self.graph._expand(graph)
        except BaseException:
            lib.ggml_free(self.ctx)
            raise
        return graph

    def __exit__(self, *_: object) -> None:
        lib.ggml_free(self.ctx)
        self.graph._give_back()
