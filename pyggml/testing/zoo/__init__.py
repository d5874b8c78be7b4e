"""The zoo: how a tiny model of every architecture of llama.cpp is made, and which of them run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .alone import ALONE
from .dense import DENSE
from .encoders import ENCODERS
from .experts import EXPERTS
from .hybrid import HYBRID
from .latent import LATENT
from .registry import Architecture

__all__ = ["ZOO", "Architecture"]

ZOO: Mapping[str, Architecture] = MappingProxyType(
    {a.name: a for a in sorted((*DENSE, *EXPERTS, *HYBRID, *LATENT, *ENCODERS, *ALONE), key=lambda a: a.name)}
)
"""Every architecture that the vendored llama.cpp knows, by name."""
