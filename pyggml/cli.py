"""The command line: devices, demo, plan, compare. Options carry llama.cpp's names, so that its command lines carry over."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._about import __version__

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .model import ModelOptions
    from .split import Rule

__all__ = ["main"]

# Rounding differs by type: with F32 everywhere only the order of sums changes; quantized activations jump by a quantum.
F32_TOLERANCE, OTHER_TOLERANCE = 1e-9, 1e-4
_MODES = click.Choice(["none", "layer", "row", "tensor"])


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


class _Shares(_ParamType):
    name = "N0,N1,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(v) for v in str(value).replace("/", ",").split(","))
        except ValueError:
            self.fail(f"{value!r}: shares are numbers separated by commas, such as 3,1", param, ctx)


class _RuleType(_ParamType):
    name = "PATTERN=SPLIT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rule:
        from .errors import ArgumentError
        from .split import rule

        pattern, equals, split = str(value).rpartition("=")
        if not equals:
            self.fail(f"{value!r}: a rule is PATTERN=SPLIT, such as 'ffn_up=S1 3:1'", param, ctx)
        try:
            return rule(pattern, split)
        except ArgumentError as error:
            self.fail(str(error), param, ctx)


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("-dev", "--device", default="vcpu:2", show_default=True, metavar="DEVICES",
                     help="Devices, separated by commas: vcpu:2 (virtual CPUs), sim:2@24GiB (simulated), CUDA0,CUDA1, Vulkan, rpc:HOST:PORT."),
        click.option("-sm", "--split-mode", type=_MODES, default="tensor", show_default=True, help="How the model is spread over the devices."),
        click.option("-ts", "--tensor-split", type=_Shares(), default=None, help="Shares of the devices, such as 3,1. Default: even."),
        click.option("-c", "--ctx-size", type=click.IntRange(1, 1 << 24), default=512, show_default=True, help="Tokens in the context."),
        click.option("-b", "--batch-size", type=click.IntRange(1), default=512, show_default=True, help="Tokens decoded at once."),
        click.option("-ctk", "--cache-type-k", default="f16", show_default=True, help="Format of the K cache."),
        click.option("-ctv", "--cache-type-v", default="f16", show_default=True, help="Format of the V cache."),
        click.option("-fa", "--flash-attn", type=click.Choice(["on", "off", "auto"]), default="auto", show_default=True, help="Flash attention; tensor mode needs it."),
        click.option("-t", "--threads", type=click.IntRange(1, 512), default=None, help="Threads of the CPU device. Default: all cores."),
        click.option("--rule", "rules", type=_RuleType(), multiple=True,
                     help="A split of your own for weights whose name matches, in front of llama.cpp's rules, KV caches included: --rule 'ffn=M', or --rule 'ffn_(up|gate)=S1 3:1' --rule 'ffn_down=S0 3:1', or --rule attn=M --rule cache=M."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _options(given: dict[str, Any], **changes: Any) -> ModelOptions:
    from .model import ModelOptions

    return ModelOptions(
        **{
            "split_mode": given["split_mode"],
            "tensor_split": given["tensor_split"],
            "n_ctx": given["ctx_size"],
            "n_batch": given["batch_size"],
            "type_k": given["cache_type_k"],
            "type_v": given["cache_type_v"],
            "flash_attn": given["flash_attn"],
            "threads": given["threads"],
            **changes,
        }
    )


def _open(path: str | Path, device: str, options: ModelOptions, rules: Sequence[Rule] = (), label: str = "") -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    from .model import Model

    console = _stderr()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"loading {Path(path).name} {label}", total=1.0)
        return Model.with_options(path, device, options, rules=rules, progress=lambda f: bar.update(task, completed=f))


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _stdout() -> Any:
    """As wide as the terminal; into a file or a pipe wide enough for tables not to wrap."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 132))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version")
@click.option("-v", "--verbose", count=True, help="Show what ggml and llama.cpp log; twice: everything.")
def cli(verbose: int) -> None:
    """Split models and compute graphs over several devices with ggml's meta backend: see what fits, look at the plan,
    and check that the split computes what one device computes.

    \b
    pyggml demo                                          a small model over two virtual CPU devices
    pyggml plan MODEL.gguf -dev vcpu:2 -sm tensor -ts 3,1    what would be split how, without loading it
    pyggml compare MODEL.gguf -dev CUDA0,CUDA1               the split against one device
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, format="%(message)s")


@cli.command()
def devices() -> None:
    """List the devices that ggml found, and what else can be used as one."""
    from rich.table import Table

    from . import device as d
    from ._units import binary

    table = Table(box=None, pad_edge=False)
    for head in ("name", "type", "backend", "memory free / total", "description"):
        table.add_column(head)
    for one in [*d.devices(), *d.virtual_cpus(1)]:
        memory = one.memory
        table.add_row(one.name, one.type, one.backend, f"{binary(memory.free)} / {binary(memory.total)}", one.description)
    console = _stdout()
    console.print(table)
    console.print(
        "\nVCPU devices are made on demand: -dev vcpu:2 is two of them, vcpu:2x4 of four threads each. "
        "-dev sim:2@24GiB is two simulated devices, for plans. -dev rpc:HOST:PORT is an RPC server."
    )


@cli.command()
@click.option("-dev", "--device", default="vcpu:2", show_default=True, metavar="DEVICES", help="Devices to split over.")
@click.option("-ts", "--tensor-split", type=_Shares(), default=None, help="Shares of the devices, such as 3,1. Default: even.")
@click.option("--arch", default="llama", show_default=True, help="Architecture of the model that is made, such as llama, qwen3, qwen35, gemma3; a wrong one lists all.")
@click.option("--moe", is_flag=True, help="A mixture of 8 experts, 2 of them used, where the architecture has one.")
@click.option("--tokens", type=click.IntRange(1, 512), default=32, show_default=True, help="Tokens of the prompt.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights and prompt.")
@click.pass_context
def demo(ctx: click.Context, /, device: str, tensor_split: tuple[float, ...] | None, arch: str, moe: bool, tokens: int, seed: int) -> None:
    """Make a small GGUF model, split it, show the plan, and compare it with one device. Needs no file.

    The exit status is 1 when the split does not compute what one device computes.
    """
    from .device import parse_devices
    from .model import ModelOptions
    from .testing import tiny_gguf

    n = len(parse_devices(device))
    shares = (1,) * n
    if tensor_split:
        if any(s != int(s) for s in tensor_split):
            raise click.BadParameter("the demo makes a model that fits the shares exactly: whole numbers, such as 3,1", ctx, param_hint="-ts")
        shares = tuple(int(s) for s in tensor_split)
    with tempfile.TemporaryDirectory(prefix="pyggml-demo-") as folder:
        model = tiny_gguf(Path(folder) / f"tiny-{arch}.gguf", arch, moe=moe, n_layer=4, seed=seed, shares=(shares,))
        click.echo(f"{model.path.name}: {arch}, {model.n_layer} layers, {model.n_head} heads ({model.n_head_kv} KV), n_ff {model.n_ff}, {model.n_bytes / 2**20:.1f} MiB")
        options = ModelOptions("tensor", tensor_split, n_ctx=512, type_k="f32", type_v="f32", attn_f32=True)
        ok = _run_compare(model.path, device, options, (), _prompt(model.n_vocab, tokens, seed), None, F32_TOLERANCE, show_plan=True)
    ctx.exit(0 if ok else 1)


@cli.command()
@click.argument("model", type=click.Path(dir_okay=False))
@_model_options
@click.option("-n", "--n-tokens", type=click.IntRange(1), default=1, show_default=True, help="Tokens of the planned decode: 1 is generation, more a prompt.")
@click.option("--n-past", type=click.IntRange(0), default=0, show_default=True, help="Tokens in the cache before it.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, allow_dash=True), help="Write the plan as JSON ('-': to the output).")
@click.option("--detail", type=click.Choice(["layers", "nodes", "all"]), default="nodes", show_default=True, help="A line a layer, computed nodes, or views too.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Show identical layers once.")
def plan(model: str, n_tokens: int, n_past: int, json_file: str | None, detail: str, fold: bool, **given: Any) -> None:
    """Show what ggml infers for MODEL: every split, all-reduce and byte, without loading the weights.

    A file that was cut behind its header is enough. Nothing is allocated on a device.
    """
    from .model import plan_model

    console = _stderr()
    with console.status("planning") if console.is_terminal else contextlib.nullcontext():
        found = plan_model(model, given["device"], n_tokens=n_tokens, n_past=n_past, rules=given["rules"], options=_options(given))
    if json_file == "-":
        click.echo(found.to_json(indent=1))
        return
    found.render(_stdout(), fold=fold, detail=detail)  # type: ignore[arg-type]
    if json_file:
        Path(json_file).write_text(found.to_json(indent=1), encoding="utf-8")
        click.echo(f"plan written to {json_file}", err=True)


@cli.command()
@click.argument("model", type=click.Path(dir_okay=False))
@_model_options
@click.option("--against", default=None, metavar="DEVICE", help="The one device to compare with. Default: the first of --device alone.")
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens of the prompt (random ids).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the prompt.")
@click.option("--attn-f32", is_flag=True, help="Keep an F32 cache in F32 for flash attention, where llama.cpp rounds it to F16.")
@click.option("--tolerance", type=click.FloatRange(0), default=None, help=f"Largest NMSE. Default: {F32_TOLERANCE:g} where everything is F32 (with --attn-f32), else {OTHER_TOLERANCE:g}.")
@click.pass_context
def compare(
    ctx: click.Context, /, model: str, against: str | None, tokens: int, seed: int, attn_f32: bool, tolerance: float | None, **given: Any
) -> None:
    """Compare the logits of MODEL split over devices with those of one device.

    The exit status is 1 when they do not agree.
    """
    from .gguf_check import check_gguf

    info = check_gguf(model)
    options = _options(given, attn_f32=attn_f32)
    if tolerance is None:
        exact = attn_f32 and options.type_k == options.type_v == "f32" and all(str(t.dtype) == "f32" for t in info.tensors)
        tolerance = F32_TOLERANCE if exact else OTHER_TOLERANCE
    ok = _run_compare(model, given["device"], options, given["rules"], (tokens, seed), against, tolerance, show_plan=False)
    ctx.exit(0 if ok else 1)


def _prompt(n_vocab: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, n_vocab, n)


def _run_compare(
    path: str | Path,
    device: str,
    options: ModelOptions,
    rules: Sequence[Rule],
    prompt: Any,
    against: str | None,
    tolerance: float,
    *,
    show_plan: bool,
) -> bool:
    from dataclasses import replace

    import numpy as np

    from .comparison import nmse
    from .device import parse_devices
    from .model import plan_model

    console = _stdout()
    found = parse_devices(device)
    if show_plan:
        plan_model(path, found, n_tokens=len(prompt), rules=rules, options=options).render(console)
    with _open(path, device, options, rules, f"on {device}") as split:
        tokens = prompt if not isinstance(prompt, tuple) else _prompt(split.n_vocab, *prompt)
        mine = split.logits(tokens)
    alone = [found[0]] if against is None else parse_devices(against)
    if len(alone) != 1:
        raise click.BadParameter(f"{against} is {len(alone)} devices: name one, such as {alone[0].name} or CPU", param_hint="--against")
    one = replace(options, split_mode="none", tensor_split=None)
    with _open(path, alone, one, (), f"on {alone[0].name}") as whole:  # type: ignore[arg-type]
        theirs = whole.logits(tokens)
    error = nmse(mine, theirs)
    same = float(np.mean(mine.argmax(-1) == theirs.argmax(-1)))
    ok = error <= tolerance
    names = ",".join(d.name for d in found)
    console.print(
        f"\n{names} ({options.split_mode}) against {alone[0].name}: NMSE {error:.3g} over {len(tokens)} tokens, "
        f"largest difference {float(np.abs(mine - theirs).max()):.3g}, same top token {same:.0%}"
    )
    console.print(f"[bold green]agree[/] (tolerance {tolerance:g})" if ok else f"[bold red]DO NOT AGREE[/] (tolerance {tolerance:g})")
    return ok


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``pyggml`` command. Errors of pyggml are one message and status 2; Ctrl-C is status 130."""
    from .errors import Error

    try:
        status = cli.main(args=None if arguments is None else list(arguments), prog_name="pyggml", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Error as error:
        click.echo(f"pyggml: {type(error).__name__}: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
            sys.exit(141)
        click.echo(f"pyggml: {error}", err=True)
        sys.exit(2)



if __name__ == "__main__":
    main()
