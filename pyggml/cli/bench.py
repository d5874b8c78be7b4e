"""``pyggml bench``."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import DEVICES_HELP, MODES, ListOf, ModelCommand, RuleType, Shares, all_rules
from .terminal import stderr

if TYPE_CHECKING:
    from ..benchmark import BenchReport, BenchSetup, BenchTest

__all__ = ["bench"]

_WHOLE = ListOf(click.IntRange(0, 1 << 24))
_SIZES = ListOf(click.IntRange(1, 1 << 24))


class _Svg(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).lower().endswith(".svg"):
            self.fail(f"{value!r}: the plot is written as SVG: give a name that ends in .svg", param, ctx)
        return super().convert(value, param, ctx)


@click.command(cls=ModelCommand)
@click.argument("models", metavar="MODEL...", nargs=-1, type=click.Path(dir_okay=False))
@click.option("-dev", "--device", "devices", multiple=True, default=("vcpu:2",), show_default=True, metavar="DEVICES", help=DEVICES_HELP + " Several times: each in turn.")
@click.option("-sm", "--split-mode", type=ListOf(MODES), default=None, help="Split modes, such as none,layer,tensor. Default: all three over several devices, else none.")
@click.option("-ts", "--tensor-split", type=Shares(), multiple=True, help="Shares, such as 3,1 (or 3/1), for layer and tensor. Several times: each in turn. Default: even.")
@click.option("-p", "--n-prompt", type=_WHOLE, default="512", show_default=True, help="Tokens of the prompts; 0: none.")
@click.option("-n", "--n-gen", type=_WHOLE, default="128", show_default=True, help="Tokens to generate; 0: none.")
@click.option("-pg", "both", type=ListOf(click.IntRange(1, 1 << 24), length=2), multiple=True, help="A prompt and a generation behind it, timed together, such as 512,128.")
@click.option("-d", "--n-depth", type=_WHOLE, default="0", show_default=True, help="Tokens that are in the cache before.")
@click.option("-b", "--batch-size", type=_SIZES, default="512", show_default=True, help="Tokens computed at once (llama-bench's -ub).")
@click.option("-ctk", "--cache-type-k", type=ListOf(click.STRING), default="f16", show_default=True, help="Formats of the K cache.")
@click.option("-ctv", "--cache-type-v", type=ListOf(click.STRING), default="f16", show_default=True, help="Formats of the V cache.")
@click.option("-fa", "--flash-attn", type=ListOf(click.Choice(["on", "off", "auto"])), default="auto", show_default=True, help="Flash attention; tensor mode needs it.")
@click.option("-t", "--threads", type=ListOf(click.IntRange(1, 512)), default=None, help="Threads of the CPU device. Default: all cores.")
@click.option("--rule", "rules", type=RuleType(), multiple=True, callback=all_rules, help="Splits of your own, for tensor mode, as in pyggml plan.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Times each test is done.")
@click.option("--no-warmup", is_flag=True, help="Do not do each test once before.")
@click.option("-o", "--output", type=click.Choice(["md", "csv", "json", "jsonl"]), default="md", show_default=True, help="Format of the output.")
@click.option("--plot", type=_Svg(dir_okay=False, writable=True), default=None, help="Draw the outcome as SVG into this file.")
@click.option("--tiny", metavar="ARCH", default=None, help="Instead of a file, a tiny model of this architecture, such as llama: to see whether it works, not how fast.")
def bench(models: tuple[str, ...], tiny: str | None, output: str, plot: str | None, repetitions: int, no_warmup: bool, **given: Any) -> None:
    """Time MODEL in several configurations: prompts and generation.

    Every combination of the options is measured, as llama-bench does; several values are separated by commas, devices and
    shares are given by repeating the option. Tokens are random, and nothing is sampled. The configurations take turns in
    each repetition, because machines get faster and slower over minutes. The speed-up is over the first configuration.
    """
    from ..benchmark import measure
    from ..report import bench_text

    if not models and tiny is None:
        raise click.UsageError("Missing argument 'MODEL...': a GGUF file (or --tiny ARCH)")
    with contextlib.ExitStack() as stack:
        files = [Path(m) for m in models]
        if tiny is not None:
            files.append(stack.enter_context(_tiny(tiny, given["devices"])))
        setups, tests = _setups(files, given), _tests(given)
        report = measure(setups, tests, repetitions=repetitions, warmup=not no_warmup, progress=stack.enter_context(_bar()))
    for setup, reason in report.skipped:
        click.echo(f"left out: {setup.name} (-fa {setup.options.flash_attn}): {reason}", err=True)
    write: Callable[[BenchReport], str] = getattr(bench_text, {"md": "to_markdown"}.get(output, f"to_{output}"))
    click.echo(write(report))
    if plot:
        from ..report.bench_svg import to_svg

        Path(plot).write_text(to_svg(report), encoding="utf-8")
        click.echo(f"plot written to {plot}", err=True)


def _tests(given: dict[str, Any]) -> list[BenchTest]:
    from ..benchmark import BenchTest

    pairs = [*((p, 0) for p in given["n_prompt"] if p), *((0, n) for n in given["n_gen"] if n), *given["both"]]
    if not pairs:
        raise click.UsageError("nothing to time: -p and -n are 0")
    return [BenchTest(p, n, depth) for depth in given["n_depth"] for p, n in pairs]


def _setups(files: list[Path], given: dict[str, Any]) -> list[BenchSetup]:
    from ..benchmark import BenchSetup
    from ..device import parse_devices
    from ..model import ModelOptions

    setups = []
    used: set[tuple[float, ...]] = set()
    for path, words in itertools.product(files, given["devices"]):
        devices = tuple(d for d in parse_devices(words) if d.type != "cpu")
        modes = given["split_mode"] or (("none", "layer", "tensor") if len(devices) > 1 else ("none",))
        for mode in modes:
            fitting = [ts for ts in given["tensor_split"] if len(ts) == len(devices)] if mode != "none" else []
            used.update(fitting)
            lists = (fitting or [None], *(given[k] for k in ("batch_size", "cache_type_k", "cache_type_v", "flash_attn")), given["threads"] or [None])
            for shares, n_batch, type_k, type_v, flash, threads in itertools.product(*lists):
                options = ModelOptions(mode, shares, 512, n_batch, type_k, type_v, flash, threads)
                # none takes the first device: over several lists of devices it is the same one
                one = BenchSetup(path, devices[:1] if mode == "none" else devices, options, given["rules"] if mode == "tensor" else ())
                if one not in setups:
                    setups.append(one)
    for shares in given["tensor_split"]:
        if shares not in used:
            raise click.UsageError(f"-ts {','.join(f'{s:g}' for s in shares)}: no configuration has {len(shares)} devices over which something is split")
    if given["rules"] and not any(s.rules for s in setups):
        raise click.UsageError("--rule: no configuration is in tensor mode")
    return setups


@contextlib.contextmanager
def _tiny(arch: str, devices: tuple[str, ...]) -> Iterator[Path]:
    from ..device import parse_devices
    from ..testing import DEFAULT_SHARES, tiny_gguf

    # shapes that any of the devices can have an even part of
    even = {(1,) * n for words in devices if (n := len(parse_devices(words))) > 1}
    with tempfile.TemporaryDirectory(prefix="pyggml-bench-") as folder:
        yield tiny_gguf(Path(folder) / f"tiny-{arch}.gguf", arch, shares=[*DEFAULT_SHARES, *even]).path


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr()
    columns = BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
