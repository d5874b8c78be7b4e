"""``pyggml compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import model_options, options_of
from .terminal import open_model, stdout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..model import ModelOptions
    from ..split import Rule

__all__ = ["F32_TOLERANCE", "compare", "random_tokens", "run_compare"]

# Rounding differs by type: with F32 everywhere only the order of sums changes; quantized activations jump by a quantum.
F32_TOLERANCE, OTHER_TOLERANCE = 1e-9, 1e-4


@click.command()
@click.argument("model", type=click.Path(dir_okay=False))
@model_options
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
    from ..gguf_check import check_gguf

    info = check_gguf(model)
    options = options_of(given, attn_f32=attn_f32)
    if tolerance is None:
        exact = attn_f32 and options.type_k == options.type_v == "f32" and all(str(t.dtype) == "f32" for t in info.tensors)
        tolerance = F32_TOLERANCE if exact else OTHER_TOLERANCE
    ok = run_compare(model, given["device"], options, given["rules"], (tokens, seed), against, tolerance, show_plan=False)
    ctx.exit(0 if ok else 1)


def random_tokens(n_vocab: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, n_vocab, n)


def run_compare(
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

    from ..comparison import nmse
    from ..device import parse_devices
    from ..model import plan_model

    console = stdout()
    found = parse_devices(device)
    if show_plan:
        plan_model(path, found, n_tokens=len(prompt), rules=rules, options=options).render(console)
    with open_model(path, device, options, rules, f"on {device}") as split:
        tokens = prompt if not isinstance(prompt, tuple) else random_tokens(split.n_vocab, *prompt)
        mine = split.logits(tokens)
    alone = [found[0]] if against is None else parse_devices(against)
    if len(alone) != 1:
        raise click.BadParameter(f"{against} is {len(alone)} devices: name one, such as {alone[0].name} or CPU", param_hint="--against")
    one = replace(options, split_mode="none", tensor_split=None)
    with open_model(path, alone, one, (), f"on {alone[0].name}") as whole:  # type: ignore[arg-type]
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
