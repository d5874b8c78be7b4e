"""The plan of a run as a value: what it consists of (`values`), the whole (`plan`), and its JSON (`json`)."""

from .check import CheckReport, Violation
from .plan import SCHEMA, Detail, PlanKeyError, SplitPlan
from .values import (
    VIEW_OPS,
    AllReduce,
    Cause,
    PlanLeaf,
    PlannedMemory,
    PlanNode,
    PlanRule,
    ReduceStep,
    Runs,
    Shape,
    Slice,
    Subgraph,
    WeightBytes,
    parse_state,
)

__all__ = [
    "SCHEMA",
    "VIEW_OPS",
    "AllReduce",
    "Cause",
    "CheckReport",
    "Detail",
    "PlanKeyError",
    "PlanLeaf",
    "PlanNode",
    "PlanRule",
    "PlannedMemory",
    "ReduceStep",
    "Runs",
    "Shape",
    "Slice",
    "SplitPlan",
    "Subgraph",
    "Violation",
    "WeightBytes",
    "parse_state",
]
