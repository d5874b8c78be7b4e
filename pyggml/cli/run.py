"""``pyggml run``."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._units import counted
from .options import DEVICES_HELP, MODES, ModelCommand, loading_options, options_of, prompt_options, prompt_text
from .terminal import open_model

if TYPE_CHECKING:
    from ..model import GeneratedToken, Model
    from ..model.reduction import Reduction

__all__ = ["run"]

_MOST_CONTEXT = 4096  # unless it is asked for: a cache of the length that models are made for may be gigabytes


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


class _Lora(_ParamType):
    name = "FILE[:SCALE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        file, colon, scale = str(value).rpartition(":")
        if colon and not Path(str(value)).exists():
            try:
                return file, float(scale)
            except ValueError:
                pass
        return str(value), 1.0


def _sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("-n", "--predict", "--n-predict", "predict", type=click.IntRange(-1), default=-1, show_default=True, help="Tokens to generate; -1: until the model ends the text, or the context is full."),
        click.option("--temp", "temperature", type=float, default=0.8, show_default=True, help="Temperature; 0: always the likeliest token."),
        click.option("--top-k", type=int, default=40, show_default=True, help="Among so many of the likeliest; 0: all."),
        click.option("--top-p", type=float, default=0.95, show_default=True, help="Among the likeliest that make up this probability; 1: all."),
        click.option("--min-p", type=float, default=0.05, show_default=True, help="Not those less likely than this fraction of the likeliest; 0: all."),
        click.option("-s", "--seed", type=click.IntRange(-1), default=-1, show_default=True, help="Of the choice; -1: a random one, which is told at the end."),
        click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="Against tokens that occurred; 1: off."),
        click.option("--repeat-last-n", type=int, default=64, show_default=True, help="Tokens that the penalty looks at."),
        click.option("--grammar", default="", help="GBNF; what it forbids is never chosen."),
        click.option("--grammar-file", type=click.File("r", encoding="utf-8", errors="replace"), default=None, help="A file with the grammar."),
        click.option("--ignore-eos", is_flag=True, help="Never choose a token that ends the text."),
        click.option("--context-shift", is_flag=True, help="When the context is full, forget the older half and go on."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=ModelCommand)
@click.argument("model", type=click.Path(dir_okay=False))
@prompt_options
@_sampling_options
@click.option("-dev", "--device", default="cpu", show_default=True, metavar="DEVICES", help=DEVICES_HELP)
@click.option("-sm", "--split-mode", type=MODES, default=None, help="How the model is spread over the devices. Default: tensor over several, none on one.")
@click.option("-c", "--ctx-size", type=click.IntRange(0, 1 << 24), default=0, show_default=True, help=f"Tokens in the context; 0: as many as the model is made for, up to {_MOST_CONTEXT}.")
@loading_options
@click.option("--lora", type=_Lora(), multiple=True, help="A LoRA adapter (GGUF), with its scale unless that is 1.")
@click.option("-cnv", "--conversation", is_flag=True, help="Converse, by the model's chat template: -p is the first message, further ones are lines of the input.")
@click.option("-sys", "--system-prompt", default=None, help="What the assistant is told before (with -cnv).")
@click.option("--chat-template", default=None, metavar="NAME", help="A template that llama.cpp knows, such as chatml or llama3, instead of the model's own (with -cnv).")
def run(model: str, device: str, lora: tuple[tuple[str, float], ...], **given: Any) -> None:
    """Continue a text with MODEL, in any configuration, or converse with it (-cnv).

    The text is written token by token. The output has nothing but it (token ids, where the model has no tokenizer); speed, seed and the all-reduce
    in use are told on the standard error at the end.

    \b
    pyggml run MODEL.gguf -p "Once upon a time" -n 64
    pyggml run MODEL.gguf -dev CUDA0,CUDA1 -ts 3,1 -cnv -sys "Be brief."
    pyggml run MODEL.gguf -dev vcpu:2 -sm layer -f text.txt --temp 0
    """
    from ..device import parse_devices
    from ..gguf_check import check_gguf

    prompt = prompt_text(given)
    if given["conversation"]:
        if isinstance(prompt, tuple):
            raise click.UsageError("-cnv: messages are texts; --tokens is for continuing")
        if given["context_shift"]:
            raise click.UsageError("-cnv: nothing of a conversation can be forgotten; give a larger -c")
    elif prompt is None:
        raise click.UsageError("nothing to continue: give -p TEXT, -f FILE or --tokens 1,2,3 (or -cnv to converse)")
    else:
        for name, value in (("-sys", given["system_prompt"]), ("--chat-template", given["chat_template"])):
            if value is not None:
                raise click.UsageError(f"{name} is for a conversation: give -cnv, too")
    devices = [d for d in parse_devices(device) if d.type != "cpu"]
    mode = given["split_mode"] or ("tensor" if len(devices) > 1 else "none")
    length = check_gguf(model).metadata
    made_for = length.get(f"{length.get('general.architecture')}.context_length")
    n_ctx = given["ctx_size"] or min(made_for if isinstance(made_for, int) and made_for > 0 else _MOST_CONTEXT, _MOST_CONTEXT)
    with open_model(model, devices, options_of(given, split_mode=mode, n_ctx=n_ctx), given["rules"]) as opened:
        _run(opened, prompt, lora, given)


def _run(model: Model, prompt: str | tuple[int, ...] | None, lora: Iterable[tuple[str, float]], given: dict[str, Any]) -> None:
    from ..model import SamplerOptions
    from ..model.reduction import active_reduction

    context = model.default_context
    chat = model.chat(system=given["system_prompt"], template=given["chat_template"]) if given["conversation"] else None
    tokens = model.tokenize("x") if prompt is None or chat else model.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise click.UsageError("the prompt has no tokens, and this model none that begins a text: there is nothing to continue")
    start = context.decoder_start
    if start is not None:
        context.encode(tokens[:1])
    context.feed(tokens[:1])  # warm-up: weights are read from the disk, buffers made
    context.clear()
    reduction = active_reduction(context)
    context.set_adapters({model.adapter(file): scale for file, scale in lora})
    seed = given["seed"] if given["seed"] >= 0 else secrets.randbelow((1 << 32) - 1)
    options = SamplerOptions(
        seed=seed,
        logit_bias=dict.fromkeys(model.vocab.ends, float("-inf")) if given["ignore_eos"] else {},
        grammar=given["grammar_file"].read() if given["grammar_file"] else given["grammar"],
        **{name: given[name] for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")},
    )
    how: dict[str, Any] = {
        "max_tokens": None if given["predict"] < 0 else given["predict"],
        "sampler": options,
        "on_full": "shift" if given["context_shift"] else "stop",
    }
    clock = _Clock()
    try:
        if chat is not None:
            for message in _messages(prompt):
                clock.begin()
                before = context.n_past()
                answer = chat.say(message, **how)
                clock.read(context.n_past() - before)
                _write(answer, True, clock)
        else:
            clock.begin()
            n = len(tokens)
            if start is not None:  # the encoder reads the text, the decoder answers
                context.encode(tokens)
                tokens = [start]
            generated = context.generate(tokens, **how)
            clock.read(n)
            _write(generated, model.vocab.has_tokenizer, clock)
    finally:
        sys.stdout.flush()
        if clock.n_prompt:
            click.echo(f"{clock}; {_where(model, reduction)}; seed {seed}", err=True)


def _messages(first: str | tuple[int, ...] | None) -> Iterator[str]:
    """The first message, then lines of the input. After a message given, only a person is asked for more."""
    if isinstance(first, str):
        yield first
    asked = sys.stdin.isatty()
    while asked or first is None:
        if asked:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _write(generated: Iterable[GeneratedToken], text: bool, clock: _Clock) -> None:
    first = True
    for token in generated:
        clock.tick(first)
        piece = token.text if text else f"{'' if first else ' '}{token.id}"
        first = False
        if piece:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    click.echo()


@dataclass
class _Clock:
    """Counts tokens and seconds."""

    n_prompt: int = 0
    prompt: float = 0.0
    n: int = 0
    timed: int = 0
    """Those generated whose time is known: the first ones come from a prompt's logits."""
    generation: float = 0.0
    last: float = 0.0

    def begin(self) -> None:
        self.last = time.perf_counter()

    def read(self, n: int) -> None:
        self.n_prompt += n
        self.prompt += time.perf_counter() - self.last

    def tick(self, first: bool) -> None:
        now = time.perf_counter()
        if not first:
            self.timed += 1
            self.generation += now - self.last
        self.last = now
        self.n += 1

    def __str__(self) -> str:
        out = f"\nprompt: {counted(self.n_prompt, 'token')}"
        if self.prompt:
            out += f", {self.n_prompt / self.prompt:.2f} t/s"
        out += f"; generated: {counted(self.n, 'token')}"
        if self.timed:
            out += f", {self.timed / self.generation:.2f} t/s"
        return out


def _where(model: Model, reduction: Reduction) -> str:
    from ..model_comparison import configuration

    if model.options.split_mode != "tensor":
        return configuration(model)
    return f"{configuration(model)}, all-reduce: {reduction}"
