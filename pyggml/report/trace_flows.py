"""Which slices of a trace belong together: the two sides of a copy, the parts of an all-reduce."""

from __future__ import annotations

from collections.abc import Sequence

from ..tracing.tracks import Slice, Track

__all__ = ["flows_of"]


def flows_of(tracks: Sequence[Track]) -> dict[int, list[tuple[int, Slice]]]:
    """Flows by a number from 1, each as its (index of the track, slice) from where it comes to where it goes.

    Of a copy, from the device that is read to the one that is written; of an all-reduce, through all devices' parts in the
    order in which they began.
    """
    ends: dict[int, list[tuple[int, Slice]]] = {}
    for i, track in enumerate(tracks):
        for s in track.slices:
            if s.event is not None and s.event.join >= 0 and s.category in ("allreduce", "copy", "send"):
                ends.setdefault(s.event.join, []).append((i, s))
    found: dict[int, list[tuple[int, Slice]]] = {}
    for join in sorted(ends):
        if len(ends[join]) > 1:
            found[join + 1] = sorted(ends[join], key=lambda end: (end[1].category != "send", end[1].start, end[0]))
    return found
