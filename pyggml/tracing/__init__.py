"""Traces: what ran when, on which device, and where the time went.

`recording` takes them, `values` has what they are, `times` adds them up, `tracks` lays them out for viewers, `json` keeps them.
"""

from __future__ import annotations

from .recording import trace
from .times import DeviceTime, HostTime, SubgraphTime
from .values import Run, Trace, TraceDevice, TraceEvent

__all__ = ["DeviceTime", "HostTime", "Run", "SubgraphTime", "Trace", "TraceDevice", "TraceEvent", "trace"]
