"""Options that commands share. They carry llama.cpp's names, so that its command lines carry over."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..model import ModelOptions
    from ..split import Rule

__all__ = ["DEVICES_HELP", "MODES", "ListOf", "RuleType", "Shares", "TokenIds", "all_rules", "loading_options", "model_options", "options_of", "prompt_options", "prompt_text"]

DEVICES_HELP = "Devices, separated by commas: vcpu:2 (virtual CPUs), sim:2@24GiB or sim:rtx3090@24GiB,sim:rtx4060@8GiB (simulated), CUDA0,CUDA1, Vulkan, rpc:HOST:PORT."
MODES = click.Choice(["none", "layer", "row", "tensor"])


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


class Shares(_ParamType):
    name = "N0,N1,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(v) for v in re.split("[,/:]", str(value)))
        except ValueError:
            self.fail(f"{value!r}: shares are numbers separated by commas, such as 3,1", param, ctx)


class ModelCommand(click.Command):
    """Takes llama.cpp's ``-m FILE`` for its argument, and ``-ngl`` where it says what is done anyway: all layers."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        out, given = [], iter(args)
        for word in given:
            name, equals, value = word.partition("=")
            if name in ("-m", "--model"):
                out.append(value if equals else next(given, ""))
            elif name in ("-ngl", "--gpu-layers", "--n-gpu-layers"):
                layers = value if equals else next(given, "")
                if layers not in ("all", "auto") and not (layers.isdigit() and int(layers) >= 99):
                    raise click.BadParameter(f"{layers!r}: all layers are on the devices (99, all); -sm none -dev cpu leaves them on the CPU", ctx, param_hint="-ngl")
            else:
                out.append(word)
        return super().parse_args(ctx, out)


class FlashType(_ParamType):
    """llama.cpp's words for flash attention."""

    name = "on|off|auto"
    words = {"on": "on", "off": "off", "auto": "auto", "1": "on", "0": "off", "-1": "auto", "true": "on", "false": "off", "enabled": "on", "disabled": "off"}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value).lower() not in self.words:
            self.fail(f"{value!r}: on, off or auto", param, ctx)
        return self.words[str(value).lower()]


class RuleType(_ParamType):
    name = "[LAYERS:]PATTERN=SPLIT|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Rule, ...]:
        from ..errors import ArgumentError
        from ..split import rule

        if isinstance(value, tuple):
            return value
        if str(value).startswith("@"):
            from ..rules_file import load_rules

            return load_rules(str(value)[1:])
        pattern, equals, split = str(value).rpartition("=")
        if not equals:
            self.fail(f"{value!r}: a rule is PATTERN=SPLIT, such as 'ffn_up=S1 3:1'", param, ctx)
        layers, colon, rest = pattern.partition(":")
        if not (colon and re.fullmatch(r"[\d,-]+", layers)):
            layers, rest = "", pattern
        try:
            return (rule(rest, split, layers=layers or None),)
        except ArgumentError as error:
            self.fail(str(error), param, ctx)


def all_rules(ctx: click.Context, param: click.Parameter, value: tuple[tuple[Rule, ...], ...]) -> tuple[Rule, ...]:
    """Those of all uses of an option of `RuleType`."""
    return tuple(one for part in value for one in part)


class ListOf(_ParamType):
    """Several values of another type, separated by commas."""

    def __init__(self, one: Any, length: int | None = None) -> None:
        self.one, self.length, self.name = one, length, f"{one.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(self.one.convert(word.strip(), param, ctx) for word in str(value).split(","))
        if self.length is not None and len(found) != self.length:
            self.fail(f"{value!r}: {self.length} values separated by commas are expected", param, ctx)
        return tuple(dict.fromkeys(found)) if self.length is None else found


class TokenIds(_ParamType):
    name = "ID,ID,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: token ids are whole numbers separated by commas, such as 1,15,7", param, ctx)


def _with(options: Sequence[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-p``, ``-f`` and ``--tokens``; `prompt_text` reads the first two."""
    options = [
        click.option("-p", "--prompt", default=None, help="The text."),
        click.option("-f", "--file", "prompt_file", type=click.File("r", encoding="utf-8", errors="replace"), default=None, help="A file with the text ('-': the input)."),
        click.option("--tokens", type=TokenIds(), default=None, help="Token ids instead of a text, such as 1,15,7; for models without a tokenizer."),
    ]  # fmt: skip
    return _with(options, command)


def prompt_text(given: dict[str, Any]) -> str | tuple[int, ...] | None:
    """What was given of a text, a file and token ids; None: none of them. Takes them out of the options."""
    prompt, file, tokens = (given.pop(name) for name in ("prompt", "prompt_file", "tokens"))
    if sum(x is not None for x in (prompt, file, tokens)) > 1:
        raise click.UsageError("-p, -f and --tokens: give one of them")
    if file is not None:
        return str(file.read()).removesuffix("\n")  # that of the last line, as llama.cpp does
    found: str | tuple[int, ...] | None = tokens if prompt is None else prompt
    return found


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where a model is and how it is split, for commands that look at splits: tensor mode over two devices."""
    options = [
        click.option("-dev", "--device", default="vcpu:2", show_default=True, metavar="DEVICES", help=DEVICES_HELP),
        click.option("-sm", "--split-mode", type=MODES, default="tensor", show_default=True, help="How the model is spread over the devices."),
        click.option("-c", "--ctx-size", type=click.IntRange(1, 1 << 24), default=512, show_default=True, help="Tokens in the context."),
    ]  # fmt: skip
    return _with(options, loading_options(command))


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What all commands that load a model have in common."""
    options = [
        click.option("-ts", "--tensor-split", type=Shares(), default=None, help="Shares of the devices, such as 3,1. Default: even."),
        click.option("-b", "--batch-size", type=click.IntRange(1), default=512, show_default=True, help="Tokens decoded at once."),
        click.option("-ctk", "--cache-type-k", default="f16", show_default=True, help="Format of the K cache."),
        click.option("-ctv", "--cache-type-v", default="f16", show_default=True, help="Format of the V cache."),
        click.option("-fa", "--flash-attn", type=FlashType(), default="auto", show_default=True, help="Flash attention; tensor mode needs it."),
        click.option("-t", "--threads", type=click.IntRange(1, 512), default=None, help="Threads of the CPU device. Default: all cores."),
        click.option("--rule", "rules", type=RuleType(), multiple=True, callback=all_rules,
                     help="A split of your own for weights whose name matches, in front of llama.cpp's rules, KV caches included: --rule 'ffn=M', or --rule 'ffn_(up|gate)=S1 3:1' --rule 'ffn_down=S0 3:1', or --rule attn=M --rule cache=M; --rule 0-15:ffn=M: in these layers; --rule @FILE: those of a JSON or TOML file."),
    ]  # fmt: skip
    return _with(options, command)


def options_of(given: dict[str, Any], **changes: Any) -> ModelOptions:
    from ..model import ModelOptions

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
        }
        | changes
    )
