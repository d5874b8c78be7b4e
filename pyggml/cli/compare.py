"""``pyggml compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import ModelCommand, RuleType, Shares, all_rules, model_options, options_of, prompt_options, prompt_text
from .terminal import open_model, progress, stdout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..device import Device
    from ..model import Model, ModelOptions
    from ..model_comparison import ModelComparison, NodeComparison
    from ..split import Rule

__all__ = ["RandomTokens", "Setup", "compare", "compared", "print_verdict"]

_MODES = click.Choice(["none", "layer", "tensor"])
_FILE = click.Path(dir_okay=False)


@dataclass(frozen=True)
class Setup:
    """A file, and how it is loaded."""

    path: str | Path
    devices: list[Device]
    options: ModelOptions
    rules: Sequence[Rule] = ()

    def open(self) -> Model:
        opened: Model = open_model(self.path, self.devices, self.options, self.rules, f"on {','.join(d.name for d in self.devices)}")
        return opened


@click.command(cls=ModelCommand)
@click.argument("model", type=_FILE)
@model_options
@prompt_options
@click.option("-n", "--n-tokens", type=click.IntRange(1), default=32, show_default=True, help="Random token ids, unless a prompt is given.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random ids.")
@click.option("--against", default=None, metavar="DEVICES", help="What to compare with. Default: the first of --device alone.")
@click.option("--against-model", type=_FILE, default=None, help="Another file for the reference, such as one that is not quantized.")
@click.option("--against-split-mode", type=_MODES, default=None, help="Split mode of the reference. Default: none on one device, tensor on several.")
@click.option("--against-tensor-split", type=Shares(), default=None, help="Shares of the reference's devices.")
@click.option("--against-rule", "against_rules", type=RuleType(), multiple=True, callback=all_rules, help="Rules of the reference, as --rule.")
@click.option("--attn-f32", is_flag=True, help="Keep an F32 cache in F32 for flash attention, where llama.cpp rounds it to F16.")
@click.option("--tolerance", type=click.FloatRange(0), default=None, help="Largest NMSE. Default: by the coarsest format that takes part, 1e-9 for F32 (with -ctk f32 -ctv f32 --attn-f32), 1e-5 F16, 2e-4 BF16, 5e-3 quantized.")
@click.option("--nodes", is_flag=True, help="Compare every node of the graph, too, and show where the first that differs comes from.")
@click.option("--node-tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens for --nodes, from the beginning.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, allow_dash=True), help="Write the outcome as JSON ('-': to the output).")
@click.pass_context
def compare(ctx: click.Context, /, model: str, **given: Any) -> None:
    """Compare MODEL, split over devices, with one device.

    Both are loaded, and read the same text: one prompt, a file in chunks of the context size, or random tokens. The
    KL divergence takes the reference for the truth, in nats; the perplexities are of the text, but for the first token of
    each chunk.

    The exit status is 1 when the logits do not agree.
    """
    from ..model_comparison import to_json

    prompt: str | tuple[int, ...] | RandomTokens | None = prompt_text(given)
    mine = Setup(model, _devices(given), options_of(given, attn_f32=given["attn_f32"]), given["rules"])
    reference = _reference(mine, given)
    if prompt is None:
        prompt = RandomTokens(given["n_tokens"], given["seed"])
    models, nodes = compared(mine, reference, prompt, given["tolerance"], given["node_tokens"] if given["nodes"] else None)
    if given["json_file"]:
        text = to_json(models, nodes)
        if given["json_file"] == "-":
            click.echo(text)
        else:
            Path(given["json_file"]).write_text(text + "\n", encoding="utf-8")
    if given["json_file"] != "-":
        print_verdict(models, nodes)
    ctx.exit(0 if models.ok else 1)


def _devices(given: dict[str, Any]) -> list[Device]:
    from ..device import parse_devices

    return parse_devices(given["device"])


def _reference(mine: Setup, given: dict[str, Any]) -> Setup:
    from ..device import parse_devices

    against, shares, rules = given["against"], given["against_tensor_split"], given["against_rules"]
    devices = mine.devices[:1] if against is None else parse_devices(against)
    mode = given["against_split_mode"] or ("tensor" if len(devices) > 1 or rules else "none")
    path = given["against_model"] or mine.path
    reference = Setup(path, devices, replace(mine.options, split_mode=mode, tensor_split=shares), rules)
    if reference == mine or (mode == mine.options.split_mode == "none" and path == mine.path and devices[:1] == mine.devices[:1]):
        raise click.UsageError("the model would be compared with itself: give other devices to --device or --against")
    return reference


@dataclass(frozen=True)
class RandomTokens:
    """Token ids that mean nothing, of whatever vocabulary the model has."""

    n: int
    seed: int

    def of(self, n_vocab: int) -> npt.NDArray[np.int64]:
        import numpy as np

        return np.random.default_rng(self.seed).integers(0, n_vocab, self.n)


def compared(
    mine: Setup, reference: Setup, prompt: str | tuple[int, ...] | RandomTokens, tolerance: float | None, node_tokens: int | None = None
) -> tuple[ModelComparison, NodeComparison | None]:
    """Loads both and compares them: the logits, and the nodes of the first ``node_tokens`` tokens unless that is None."""
    from ..errors import UnsupportedError
    from ..model_comparison import compare_models, compare_nodes

    if node_tokens is not None and mine.options.split_mode != "tensor":
        raise UnsupportedError(f"--nodes needs -sm tensor: nodes are observed on meta devices, split_mode={mine.options.split_mode!r} has none")
    nodes = None
    with mine.open() as model:
        text = prompt.of(model.n_vocab) if isinstance(prompt, RandomTokens) else prompt
        with reference.open() as other, progress("comparing") as call:
            models = compare_models(model, other, text, tolerance=tolerance, progress=call)
        if node_tokens is not None:
            ids = model.tokenize(text) if isinstance(text, str) else text
            with _observable(reference).open() as other, progress("comparing nodes") as call:
                nodes = compare_nodes(model, other, ids[:node_tokens], tolerance=tolerance)
                call(1.0)
    return models, nodes


def _observable(reference: Setup) -> Setup:
    """The reference on a meta device of its one device: whole as before, but its nodes can be seen."""
    if reference.options.split_mode == "tensor":
        return reference
    from ..device import default_threads, virtual_cpus

    devices = reference.devices[:1]
    if not devices or devices[0].type == "cpu":  # llama.cpp makes no meta device of the CPU; the last virtual one is nobody's
        devices = virtual_cpus(1, threads=reference.options.threads or default_threads(), first=63)
    return replace(reference, devices=devices, options=replace(reference.options, split_mode="tensor", tensor_split=None))


def print_verdict(models: ModelComparison, nodes: NodeComparison | None = None) -> None:
    """The outcome, with the verdict in colour at its end."""
    console = stdout()
    *lines, verdict = str(models).splitlines()
    console.print()
    for line in (*lines, *(str(nodes).splitlines() if nodes is not None else ())):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if models.ok and nodes is not None and not nodes.ok:
        verdict += " (the logits; a node differs)"
    console.print(verdict, style="bold green" if models.ok else "bold red")
