"""Meta devices: several devices that ggml treats as one, with the rules that say how tensors are split."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ._ffi import ffi, lib
from ._ffi.callbacks import Callback
from ._handle import Borrowed, Handle
from .device import MAX_META_DEVICES, Device, parse_devices, twin
from .dtype import DTYPES_BY_ID
from .errors import ArgumentError, ClosedError, UnsupportedError
from .split import MIRRORED, Decision, Rule, decide_or_refuse, rule, tensor_info, write_state

__all__ = ["MetaDevice", "Target"]

_creation = threading.Lock()  # upstream's tables of meta devices are not thread-safe; one lock for all we make


class MetaDevice(Handle):
    """A device made of several, over which tensors are split by rules.

    Args:
        devices: the devices, in order; or words for `parse_devices`, such as ``"vcpu:2"``.
        rules: made by `rule`; the first that matches a weight's name decides, everything else is mirrored. A pair
            ``(pattern, split)`` is taken as a rule too.

    Raises:
        ArgumentError: no devices, too many, or one twice.
    """

    def __init__(
        self,
        devices: Sequence[Device] | str,
        rules: Iterable[Rule | tuple[str, str]] = (),
    ) -> None:
        found = parse_devices(devices)
        if not 1 <= len(found) <= MAX_META_DEVICES:
            raise ArgumentError(f"a meta device of {len(found)} devices: 1 to {MAX_META_DEVICES} are possible")
        if len(set(found)) != len(found):
            raise ArgumentError(f"a device is named twice: {', '.join(d.name for d in found)}")
        if not isinstance(rules, Iterable):
            raise ArgumentError(f"MetaDevice: rules={rules!r:.80}: expected rules, or pairs (pattern, split)")
        self.devices: tuple[Device, ...] = tuple(found)
        self.rules: tuple[Rule, ...] = tuple(as_rule(r) for r in rules)
        self._decisions: dict[str, Decision] = {}
        self._policy = Callback("split_policy", _policy_of(self.rules, len(found), self._decisions))
        with _creation:
            self._ptr = lib.pgg_meta_device_new(
                ffi.new("ggml_backend_dev_t[]", [d.ptr for d in found]), len(found), self._policy.function, self._policy.user_data
            )
        self._own(_release, self._ptr, self._policy)

    @property
    def ptr(self) -> Any:
        """The ``ggml_backend_dev_t``."""
        self._check_open()
        return self._ptr

    @property
    def name(self) -> str:
        """``Meta(<devices>)``."""
        return str(ffi.string(lib.ggml_backend_dev_name(self.ptr)).decode())

    @property
    def n_devices(self) -> int:
        """How many devices it spreads over."""
        return len(self.devices)

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """What was asked for and achieved, for every tensor that ggml has asked about so far, by name."""
        return MappingProxyType(self._decisions)

    def twin(self) -> MetaDevice:
        """The same rules over simulated twins of the devices: for plans. Simulated devices are their own twins."""
        self._check_open()
        return MetaDevice(twins(self.devices), self.rules)

    def __repr__(self) -> str:
        return "<MetaDevice (closed)>" if self.closed else f"<{self.name}, {len(self.rules)} rules>"


def as_rule(given: Any) -> Rule:
    """A rule, or one made of a pair (pattern, split).

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(given, Rule):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        hint = "; several are a list: rules=[(pattern, split), ...]" if isinstance(given, str) else ""
        raise ArgumentError(f"{given!r} is no rule: rule(pattern, split) or a pair (pattern, split) is{hint}")
    return rule(*given)


Target = Device | MetaDevice


def twins(devices: Sequence[Device]) -> list[Device]:
    """Simulated twins, with a communicator where the devices would have one of their own."""
    backends = {d.backend for d in devices}
    comm = len(devices) > 1 and len(backends) == 1 and backends <= {"VCPU", "CUDA"}
    return [d if d.is_simulated else twin(d, comm=comm) for d in devices]


def capacities_of(devices: Sequence[Device]) -> tuple[int, ...]:
    """The memory of each, in bytes; 0 where it has no limit of its own, or does not say."""
    return tuple(0 if d.is_virtual or d.type == "cpu" else d.memory.total for d in devices)


def communicator_of(devices: Sequence[Device]) -> str:
    """The backend whose communicator sums over these devices, as far as it is known here; nothing where it is not."""
    backends = {d.backend for d in devices}
    return backends.pop() if len(backends) == 1 and "SIM" not in backends else ""


def check_target(what: str, target: Any) -> Target:
    """The target, which must be a device, or words for one, such as ``"cpu"`` or ``"vcpu:1"``.

    Raises:
        ArgumentError: it is none, or several. DeviceNotFoundError: there is no such device.
    """
    if isinstance(target, (Device, MetaDevice)):
        return target
    if isinstance(target, str):
        found = parse_devices(target)
        if len(found) == 1:
            return found[0]
        raise ArgumentError(f"{what}: {target!r} are {len(found)} devices; MetaDevice({target!r}, rules) makes one of them")
    raise ArgumentError(f"{what}: expected a Device, a MetaDevice or words such as 'cpu', got {type(target).__name__}")


def check_device_open(user: object, target: Target) -> None:
    """Nothing runs on a meta device that is closed: its record in native code may be another's by now.

    Raises:
        ClosedError: it is closed.
    """
    if isinstance(target, MetaDevice) and target.closed:
        raise ClosedError(f"the MetaDevice of this {type(user).__name__} is closed: close it after what is on it")


def on_device(target: Target) -> Borrowed:
    """A context in which a meta device cannot be closed: something is placed on it."""
    return Borrowed((target,) if isinstance(target, MetaDevice) else ())


def target_devices(target: Target) -> tuple[Device, ...]:
    """The single devices of a target."""
    return target.devices if isinstance(target, MetaDevice) else (target,)


def refuse_simulated(target: Target, what: str) -> None:
    """Raises UnsupportedError where a simulated device is among the target's: it computes nothing and keeps nothing."""
    names = [d.name for d in target_devices(target) if d.is_simulated]
    if names:
        raise UnsupportedError(f"{what}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} simulated, for plans; run it on real or virtual devices, such as vcpu:2")


def _policy_of(rules: tuple[Rule, ...], n_devices: int, decisions: dict[str, Decision]) -> Any:
    # refers to what it needs, not to the MetaDevice, which must be free to be collected
    def policy(tensor: Any, state: Any) -> bool:
        info = tensor_info(tensor, DTYPES_BY_ID[tensor.type])
        decision = decide_or_refuse(rules, info, n_devices) or Decision(info, None, "M", MIRRORED)
        decisions[info.name] = decision
        write_state(decision.state, state, n_devices)
        return True

    return policy


def _release(ptr: Any, policy: Callback) -> None:
    lib.pgg_meta_device_release(ptr)
    policy.close()
