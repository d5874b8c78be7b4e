"""Traces as Perfetto's protobuf, by the builder and the protos of the package ``perfetto`` (the extra ``trace``)."""

from __future__ import annotations

import os
from typing import IO, Any

from ..errors import UnsupportedError
from ..tracing.tracks import tracks
from ..tracing.values import Trace
from .trace_chrome import arguments
from .trace_flows import flows_of

__all__ = ["protos", "write_perfetto"]

_SEQUENCE = 1
_UUID = 0x7067_6700_0000_0000  # of the process; tracks count from it


def protos() -> tuple[Any, Any]:
    """The protos of Perfetto, and its builder.

    Raises:
        UnsupportedError: the package ``perfetto`` is not installed.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    except ImportError as error:
        raise UnsupportedError(
            f"a Perfetto trace needs the package 'perfetto' ({error}): pip install 'pyggml[trace]'; Chrome's JSON needs nothing and is "
            "shown by ui.perfetto.dev as well: save_chrome(), --chrome"
        ) from None
    return perfetto_trace_pb2, StreamingTraceProtoBuilder


def write_perfetto(trace: Trace, file: IO[bytes]) -> None:
    """Writes a trace as a Perfetto trace: a track for each device and host thread, flows for copies and all-reduces.

    Raises:
        UnsupportedError: the package ``perfetto`` is not installed.
    """
    pb, builder_of = protos()
    builder = builder_of(file)

    def packet(timestamp: int | None = None) -> Any:
        made = builder.create_packet()
        made.trusted_packet_sequence_id = _SEQUENCE
        if timestamp is not None:
            made.timestamp = trace.began + timestamp
        return made

    first = packet()
    first.sequence_flags = pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    first.track_descriptor.uuid = _UUID
    first.track_descriptor.process.pid = os.getpid()
    first.track_descriptor.process.process_name = "pyggml"
    first.track_descriptor.child_ordering = pb.TrackDescriptor.EXPLICIT
    builder.write_packet(first)

    found = tracks(trace)
    timed: list[tuple[int, int, int, Any]] = []  # viewers sort by time, and keep the order of what has the same
    flows: dict[tuple[int, int], list[tuple[int, bool]]] = {}  # (track, id of the slice) -> (flow, whether it ends there)
    for number, ends in flows_of(found).items():
        for k, (i, s) in enumerate(ends):
            flows.setdefault((i, id(s)), []).append((_UUID + number, k == len(ends) - 1))

    for i, track in enumerate(found):
        uuid = _UUID + i + 1
        described = packet()
        described.track_descriptor.uuid = uuid
        described.track_descriptor.parent_uuid = _UUID
        described.track_descriptor.name = track.name
        described.track_descriptor.sibling_order_rank = i
        builder.write_packet(described)
        open_ends: list[int] = []  # slices of a host thread contain others
        late = _Late()

        def close(until: int, uuid: int = uuid, open_ends: list[int] = open_ends, late: _Late = late) -> None:
            while open_ends and open_ends[-1] <= until:
                at = open_ends.pop()
                end = packet(at)
                end.track_event.type = pb.TrackEvent.TYPE_SLICE_END
                end.track_event.track_uuid = uuid
                timed.append((at, late.rank(at), len(timed), end))

        for s in track.slices:
            close(s.start)
            begin = packet(s.start)
            event = begin.track_event
            event.type = pb.TrackEvent.TYPE_SLICE_BEGIN
            event.track_uuid = uuid
            event.name = s.name
            event.categories.append(s.category)
            for number, last in flows.get((i, id(s)), ()):
                (event.terminating_flow_ids if last else event.flow_ids).append(number)
            for name, value in arguments(s).items():
                note = event.debug_annotations.add()
                note.name = name
                if isinstance(value, str):
                    note.string_value = value
                else:
                    note.int_value = value
            timed.append((s.start, late.rank(s.start, s.category == "copy"), len(timed), begin))
            open_ends.append(s.end)
        close(1 << 62)
    for *_, one in sorted(timed, key=lambda t: t[:3]):
        builder.write_packet(one)


class _Late:
    """The order of packets of one time: a flow goes from the first to the next, so that a copy comes behind its other side,
    and what follows it on its track at the same time behind it."""

    def __init__(self) -> None:
        self.at, self.late = -1, False

    def rank(self, at: int, late: bool = False) -> int:
        self.late = late or (self.late and at == self.at)
        self.at = at
        return int(self.late)
