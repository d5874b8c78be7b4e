"""``pyggml trace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import ModelCommand, model_options, options_of, prompt_options, prompt_text
from .terminal import open_model, stdout

if TYPE_CHECKING:
    from ..model import Model
    from ..tracing import Trace

__all__ = ["trace"]

_FILE = click.Path(dir_okay=False, writable=True)


@click.command(cls=ModelCommand)
@click.argument("model", type=click.Path(dir_okay=False))
@prompt_options
@click.option("--n-tokens", type=click.IntRange(1), default=16, show_default=True, help="Tokens of the prompt, where none is given.")
@click.option("-n", "--predict", type=click.IntRange(0), default=8, show_default=True, help="Tokens to generate behind it, the likeliest ones.")
@model_options
@click.option("--perfetto", type=_FILE, help="Write a Perfetto trace, for ui.perfetto.dev (needs pip install 'pyggml[trace]').")
@click.option("--chrome", type=_FILE, help="Write Chrome's trace JSON, for chrome://tracing and ui.perfetto.dev.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, allow_dash=True), help="Write the trace as JSON ('-': to the output).")
@click.option("--html", type=_FILE, help="Write the plan of a decoded token as a page, with the times that were measured.")
@click.option("--sync", is_flag=True, help="Wait for devices that tell no times (all but virtual CPUs and the CPU) after every subgraph.")
@click.option("--subgraphs", type=click.IntRange(0), default=10, show_default=True, help="How many of the slowest subgraphs are listed.")
@click.option("--cold", is_flag=True, help="Trace the very first run, too, with its allocations and page faults.")
def trace(model: str, **given: Any) -> None:
    """Run MODEL and show where the time goes: computing, summing, waiting for other devices, for each device and subgraph.

    A prompt is read and a few tokens are generated, once before the trace (unless --cold) and once for it.

    \b
    pyggml trace MODEL.gguf -dev vcpu:2 --perfetto out.pftrace
    pyggml trace MODEL.gguf -dev CUDA0,CUDA1 -p "Once upon a time" -n 32 --sync
    """
    prompt = prompt_text(given)
    _check_files(given)
    with open_model(model, given["device"], options_of(given), given["rules"]) as opened:
        tokens = _tokens(opened, prompt, given["n_tokens"])
        taken = _traced(opened, tokens, given)
        _write(opened, taken, len(tokens), given)
    if given["json_file"] != "-":
        from ..report.trace_text import render_trace

        render_trace(taken, stdout(), subgraphs=given["subgraphs"])


def _check_files(given: dict[str, Any]) -> None:
    """Before the model runs: a trace that cannot be written is of no use."""
    for name in ("perfetto", "chrome", "json_file", "html"):
        if given[name] not in (None, "-") and not Path(given[name]).parent.is_dir():
            raise click.UsageError(f"{given[name]} cannot be written: there is no folder {Path(given[name]).parent}")
    if given["html"] and given["split_mode"] == "layer":
        raise click.UsageError("--html shows times on a plan, and --split-mode layer has none: trace it with --perfetto, or with --split-mode tensor")
    if given["perfetto"]:
        from ..report.trace_perfetto import protos

        protos()


def _tokens(model: Model, prompt: str | tuple[int, ...] | None, n: int) -> list[int]:
    if prompt is None:
        return [i % model.n_vocab for i in range(n)]
    tokens = model.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise click.UsageError("the prompt has no tokens, and this model none that begins a text: there is nothing to run")
    return tokens


def _traced(model: Model, tokens: list[int], given: dict[str, Any]) -> Trace:
    from ..tracing import trace as traced

    if not given["cold"]:
        _run(model, tokens, given["predict"])
    with traced(sync=given["sync"]) as taken:
        _run(model, tokens, given["predict"])
    return taken


def _run(model: Model, tokens: list[int], n: int) -> None:
    context = model.default_context
    context.clear()
    start = context.decoder_start
    if start is not None:  # the encoder reads the text, the decoder answers
        context.encode(tokens)
        tokens = [start]
    if n:
        ends = model.vocab.ends
        for _ in context.generate(tokens, max_tokens=n + 1, temperature=0, logit_bias=dict.fromkeys(ends, float("-inf"))):
            pass
    else:
        context.feed(tokens)


def _write(model: Model, taken: Trace, n_prompt: int, given: dict[str, Any]) -> None:
    if given["perfetto"]:
        taken.save_perfetto(given["perfetto"])
    if given["chrome"]:
        taken.save_chrome(given["chrome"])
    if given["json_file"] == "-":
        click.echo(taken.to_json())
    elif given["json_file"]:
        Path(given["json_file"]).write_text(taken.to_json(), encoding="utf-8")
    if given["html"]:
        plan = model.plan(1, n_prompt) if given["predict"] else model.plan(n_prompt)
        plan.to_html(given["html"], title=f"{model.path.name}, traced", trace=taken)
    for name in ("perfetto", "chrome", "json_file", "html"):
        if given[name] not in (None, "-"):
            click.echo(f"{given[name]} written", err=True)
