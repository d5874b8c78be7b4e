"""Devices by a command line's words: names to tell them apart, memory."""

from __future__ import annotations

import numpy as np
import pytest

import pyggml as gg

GIB = 1 << 30


@pytest.mark.parametrize(
    "words, expected",
    [
        ("sim:1@24GiB", [("SIM", 24)]),
        ("sim:2@24GiB", [("SIM0", 24), ("SIM1", 24)]),
        ("sim:1@24GiB, sim:2@8G", [("SIM0", 24), ("SIM1", 8), ("SIM2", 8)]),
        ("sim:rtx3090@24GiB,sim:rtx4060@8GiB", [("rtx3090", 24), ("rtx4060", 8)]),
        ("sim:rtx3090@24GiB,sim:2,SIM:rtx3090@2048M", [("rtx3090-0", 24), ("SIM0", 0), ("SIM1", 0), ("rtx3090-1", 2)]),
        ("sim:RTX 4060 Ti@16GiB,sim:a@1.5TiB", [("RTX 4060 Ti", 16), ("a", 1536)]),
    ],
)
def test_simulated(words: str, expected: list[tuple[str, int]]) -> None:
    found = gg.parse_devices(words)
    assert [(d.name, d.memory.total // GIB) for d in found] == expected
    assert all(d.is_simulated for d in found)
    for d in found:
        d.release()


def test_virtual_ones_are_numbered_through() -> None:
    assert [d.name for d in gg.parse_devices("vcpu:1,sim:1,vcpu:2")] == ["VCPU0", "SIM", "VCPU1", "VCPU2"]


def test_a_number_behind_a_number() -> None:
    assert [d.name for d in gg.simulated("rtx3090", n=2)] == ["rtx3090-0", "rtx3090-1"]
    assert [d.name for d in gg.simulated("GPU", n=2)] == ["GPU0", "GPU1"]


def test_words_are_no_names() -> None:
    """``vcpu:2`` are two devices everywhere, and never the third."""
    assert gg.get_device("vcpu2").name == "VCPU2"
    for words, says in (("vcpu:2", r"two virtual ones.*parse_devices\('vcpu:2'\)"), ("sim:2", "two simulated ones"), ("nothing", "vcpu:2.*sim:2@24GiB.*rpc:HOST:PORT")):
        with pytest.raises(gg.DeviceNotFoundError, match=says):
            gg.get_device(words)


def test_words_for_one_device_where_one_is_wanted() -> None:
    weights = gg.Weights("vcpu:1", {"w": np.ones((4, 8), np.float32)})
    with weights, gg.Graph("vcpu:1") as graph:
        graph.output("y", weights["w"] @ graph.input("x", (8,)))
        assert gg.compare(graph, on="cpu").ok
    with pytest.raises(gg.ArgumentError, match=r"Graph: 'vcpu:2' are 2 devices; MetaDevice\('vcpu:2', rules\)"):
        gg.Graph("vcpu:2")
