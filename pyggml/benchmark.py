"""How fast models are: prompts and generation, in several configurations, measured in turns."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import whole
from .device import Device, cpu, default_threads
from .errors import ArgumentError, DTypeError, OutOfMemoryError, UnsupportedError
from .gguf_check import check_gguf
from .model import Context, Model, ModelOptions
from .model.options import MAX_TOKENS
from .model.reduction import Reduction, active_reduction
from .split import Rule

__all__ = ["BenchReport", "BenchResult", "BenchSetup", "BenchTest", "Progress", "measure"]

Progress = Callable[[str, float], object]
"""Called with what is done now, and the fraction that is done."""

_HOST_SHARE = 0.8  # of the free memory that all configurations together may take


@dataclass(frozen=True, slots=True)
class BenchTest:
    """What is timed: a prompt, a generation, or one after the other, behind ``depth`` tokens that are in the cache."""

    n_prompt: int = 0
    n_gen: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        for name in ("n_prompt", "n_gen", "depth"):
            whole(name, getattr(self, name), 0, MAX_TOKENS)
        if not self.n_prompt + self.n_gen:
            raise ArgumentError(f"{self!r}: expected at least one token to time")

    def __str__(self) -> str:
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class BenchSetup:
    """A model's file, and a configuration in which it is loaded. ``options.n_ctx`` is chosen by what is timed."""

    path: Path
    devices: tuple[Device, ...]
    options: ModelOptions
    rules: tuple[Rule, ...] = ()

    @property
    def used(self) -> tuple[Device, ...]:
        """The devices that take part; none: the CPU alone."""
        gpus = tuple(d for d in self.devices if d.type != "cpu")
        return gpus[:1] if self.options.split_mode == "none" else gpus

    @property
    def name(self) -> str:
        """For people: ``VCPU0,VCPU1 tensor 3:1``."""
        o = self.options
        shares = "" if o.tensor_split is None else " " + ":".join(f"{s:g}" for s in o.tensor_split)
        return f"{','.join(d.name for d in self.used) or 'CPU'} {o.split_mode}{shares}"


@dataclass(frozen=True)
class BenchResult:
    """A test in one configuration. Times are of the whole test, in nanoseconds."""

    setup: BenchSetup
    test: BenchTest
    model_type: str
    """What llama.cpp calls the model."""
    model_size: int
    """Bytes of its weights."""
    model_n_params: int
    reduction: Reduction
    samples_ns: tuple[int, ...]
    test_time: str
    """When it began, UTC."""
    speedup: float = 1.0
    """Tokens per second, as a multiple of those of `baseline`."""
    baseline: str = ""
    """The first configuration of the same file."""

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second of each repetition."""
        n = self.test.n_prompt + self.test.n_gen
        return tuple(n * 1e9 / ns for ns in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Their mean."""
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Their standard deviation; 0 of a single one."""
        return statistics.stdev(self.samples_ts) if len(self.samples_ns) > 1 else 0.0


@dataclass(frozen=True)
class BenchReport:
    """The outcome of `measure`."""

    results: tuple[BenchResult, ...]
    interleaved: bool
    """Whether the configurations took turns in each repetition. Else one was finished before the next was loaded."""
    skipped: tuple[tuple[BenchSetup, str], ...] = ()
    """Configurations that are not possible, with the reason."""


def measure(
    setups: Sequence[BenchSetup],
    tests: Sequence[BenchTest],
    *,
    repetitions: int = 5,
    warmup: bool = True,
    interleave: bool = True,
    progress: Progress | None = None,
) -> BenchReport:
    """Times every test in every configuration, with random tokens.

    The configurations take turns: first all do the first repetition of all tests, then all the second, because machines
    get faster and slower over minutes. For that all of them are loaded at once; where the memory is too small for it, one
    is loaded after the other (``interleaved`` of the report says so). Loading, warm-up and what fills the cache up to a
    depth are not timed, nor are tokenizing and sampling.

    Args:
        repetitions: of each test.
        warmup: do each test once before.
        interleave: False: one configuration after the other, in any case.
        progress: called between the tests.

    Raises:
        ArgumentError: nothing to do. UnsupportedError: no configuration is possible; the first one's reason.
        Others: see `Model` and `Context.decode`.
    """
    whole("repetitions", repetitions, 1, MAX_TOKENS)
    if not setups or not tests:
        raise ArgumentError(f"{len(setups)} configurations, {len(tests)} tests: expected at least one of each")
    bench = _Bench(list(dict.fromkeys(setups)), list(dict.fromkeys(tests)), repetitions, warmup, progress)
    return bench.run(interleave)


class _Bench:
    def __init__(self, setups: list[BenchSetup], tests: list[BenchTest], repetitions: int, warmup: bool, progress: Progress | None) -> None:
        self.setups, self.tests, self.repetitions, self.warmup, self.progress = setups, tests, repetitions, warmup, progress
        self.total = len(setups) * len(tests) * (repetitions + warmup)

    def run(self, interleave: bool) -> BenchReport:
        together = interleave and self._fits_the_host()
        try:
            measured, skipped = self._measured([self.setups] if together else [[s] for s in self.setups])
        except OutOfMemoryError:
            if not together or len(self.setups) == 1:
                raise
            together = False
            measured, skipped = self._measured([[s] for s in self.setups])
        if not measured:
            raise UnsupportedError("; ".join(dict.fromkeys(reason for _, reason in skipped)))
        return BenchReport(tuple(_compared(measured)), together or len(self.setups) == 1, tuple(skipped))

    def _fits_the_host(self) -> bool:
        """Whether the copies of weights in the host's memory do; devices with memory of their own say so by themselves."""
        loaded = {_load_key(s) for s in self.setups if s.used and s.used[0].is_virtual}
        size = {path: check_gguf(path, whole=False).tensor_bytes for path in {key[0] for key in loaded}}
        need = sum(size[key[0]] for key in loaded)
        return need <= _HOST_SHARE * cpu().memory.free

    def _measured(self, groups: Iterable[list[BenchSetup]]) -> tuple[list[BenchResult], list[tuple[BenchSetup, str]]]:
        results: list[BenchResult] = []
        skipped: list[tuple[BenchSetup, str]] = []
        self.done = 0
        for group in groups:
            with contextlib.ExitStack() as stack:
                models: dict[Any, Model] = {}
                stations: list[_Station] = []
                for setup in group:
                    self._tell(f"loading {setup.name}", 0)
                    try:
                        stations += self._stations(setup, models, stack)
                    except (UnsupportedError, DTypeError) as error:
                        skipped.append((setup, str(error)))
                        self.done += len(self.tests) * (self.repetitions + self.warmup)
                for station in stations:
                    station.warm_up(self._one, self.warmup)
                for _ in range(self.repetitions):
                    for station in stations:
                        station.round(self._one)
                results += [r for station in stations for r in station.results()]
        order = {(s, t): i for i, (s, t) in enumerate((s, t) for s in self.setups for t in self.tests)}
        return sorted(results, key=lambda r: order[r.setup, r.test]), skipped

    def _stations(self, setup: BenchSetup, models: dict[Any, Model], stack: contextlib.ExitStack) -> Iterator[_Station]:
        o = setup.options
        o.check(len(setup.used))
        key = _load_key(setup)
        if key not in models:
            # its own context is not used: a small one
            small = replace(o, n_ctx=64, n_batch=16)
            models[key] = stack.enter_context(Model.with_options(setup.path, list(setup.used), small, rules=setup.rules))
        model = models[key]
        by_depth: dict[int, list[BenchTest]] = {}
        for test in self.tests:
            by_depth.setdefault(test.depth, []).append(test)
        for depth, tests in by_depth.items():
            n_ctx = depth + max(t.n_prompt + t.n_gen for t in tests)
            context = stack.enter_context(model.context(replace(o.context, n_ctx=n_ctx)))
            if context.decoder_start is not None:
                raise UnsupportedError(f"{setup.path.name}: encoder-decoder models are not timed: what a prompt costs depends on both parts")
            yield _Station(setup, model, context, depth, tests)

    def _one(self, what: str) -> None:
        self._tell(what, 1)

    def _tell(self, what: str, n: int) -> None:
        if self.progress is not None:
            self.progress(what, min(self.done / self.total, 1.0))
        self.done += n


def _load_key(setup: BenchSetup) -> tuple[Any, ...]:
    """Configurations with the same key share a model."""
    o = setup.options
    return setup.path, setup.used, o.split_mode, o.tensor_split, setup.rules


@dataclass
class _Station:
    """A context, and what is timed in it."""

    setup: BenchSetup
    model: Model
    context: Context
    depth: int
    tests: list[BenchTest]
    reduction: Reduction = field(default_factory=lambda: Reduction("none", 0))
    samples: dict[BenchTest, list[int]] = field(default_factory=dict)
    begun: dict[BenchTest, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        longest = max(self.depth, *(t.n_prompt + t.n_gen for t in self.tests))
        self.tokens: npt.NDArray[np.int64] = np.random.default_rng(0).integers(0, self.model.n_vocab, longest)

    def warm_up(self, tell: Callable[[str], None], whole: bool) -> None:
        self.reduction = active_reduction(self.context)
        for test in self.tests if whole else ():
            tell(f"{self.setup.name}: warm-up of {test}")
            self._timed(test)

    def round(self, tell: Callable[[str], None]) -> None:
        for test in self.tests:
            tell(f"{self.setup.name}: {test}")
            self.begun.setdefault(test, datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
            self.samples.setdefault(test, []).append(self._timed(test))

    def _timed(self, test: BenchTest) -> int:
        self._go_to_depth()
        feed, tokens = self.context.feed, self.tokens
        prompt, generated = tokens[: test.n_prompt], [tokens[i : i + 1] for i in range(test.n_prompt, test.n_prompt + test.n_gen)]
        start = time.perf_counter_ns()
        if test.n_prompt:
            feed(prompt)
        for token in generated:
            feed(token)
        return time.perf_counter_ns() - start

    def _go_to_depth(self) -> None:
        if self.depth and self.context.n_past() > self.depth:
            try:
                self.context.seq_rm(0, self.depth)
            except UnsupportedError:
                self.context.clear()  # a recurrent state cannot be cut: once more from the beginning
        elif not self.depth:
            self.context.clear()
        if self.context.n_past() < self.depth:
            self.context.feed(self.tokens[: self.depth])

    def results(self) -> Iterator[BenchResult]:
        info = self.model.info
        n_params = sum(int(np.prod(t.ne, dtype=np.int64)) for t in info.tensors)
        for test in self.tests:
            yield BenchResult(
                self.setup, test, self.model.description, info.tensor_bytes, n_params, self.reduction, tuple(self.samples[test]), self.begun[test]
            )


def _compared(results: Sequence[BenchResult]) -> Iterator[BenchResult]:
    """With the speed-up over the first configuration of the same file."""
    first: dict[Path, BenchSetup] = {}
    for r in results:
        first.setdefault(r.setup.path, r.setup)
    speed = {(r.setup, r.test): r.avg_ts for r in results}
    for r in results:
        base = first[r.setup.path]
        yield replace(r, speedup=r.avg_ts / speed[base, r.test], baseline=base.name)


def threads_of(setup: BenchSetup) -> int:
    """Threads of the CPU device."""
    return setup.options.threads or default_threads()
