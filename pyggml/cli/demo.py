"""``pyggml demo``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from .compare import RandomTokens, Setup, compared, print_verdict
from .options import Shares
from .terminal import stdout

__all__ = ["demo"]


@click.command()
@click.option("-dev", "--device", default="vcpu:2", show_default=True, metavar="DEVICES", help="Devices to split over.")
@click.option("-ts", "--tensor-split", type=Shares(), default=None, help="Shares of the devices, such as 3,1. Default: even.")
@click.option("--arch", default="llama", show_default=True, help="Architecture of the model that is made, such as llama, qwen3, qwen35, gemma3; a wrong one lists all.")
@click.option("--moe", is_flag=True, help="A mixture of 8 experts, 2 of them used, where the architecture has one.")
@click.option("-n", "--n-tokens", type=click.IntRange(1, 512), default=32, show_default=True, help="Tokens of the prompt.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights and prompt.")
@click.pass_context
def demo(ctx: click.Context, /, device: str, tensor_split: tuple[float, ...] | None, arch: str, moe: bool, n_tokens: int, seed: int) -> None:
    """Make a small GGUF model, split it, show the plan, and compare it with one device. Needs no file.

    The exit status is 1 when the split does not compute what one device computes.
    """
    from ..device import parse_devices
    from ..model import ModelOptions, plan_model
    from ..testing import tiny_gguf

    devices = parse_devices(device)
    shares = (1,) * len(devices)
    if tensor_split:
        if any(not 0 <= s <= 64 or s != int(s) for s in tensor_split) or not any(tensor_split):
            raise click.BadParameter("the demo makes a model that fits the shares exactly: whole numbers up to 64, such as 3,1", ctx, param_hint="-ts")
        shares = tuple(int(s) for s in tensor_split)
    with tempfile.TemporaryDirectory(prefix="pyggml-demo-") as folder:
        model = tiny_gguf(Path(folder) / f"tiny-{arch}.gguf", arch, moe=moe or None, n_layer=4, seed=seed, shares=(shares,))
        click.echo(f"{model.path.name}: {arch}, {model.n_layer} layers, {model.n_head} heads ({model.n_head_kv} KV), n_ff {model.n_ff}, {model.n_bytes / 2**20:.1f} MiB")
        options = ModelOptions("tensor", tensor_split, n_ctx=512, type_k="f32", type_v="f32", attn_f32=True)
        plan_model(model.path, devices, n_tokens=n_tokens, options=options).render(stdout())
        mine = Setup(model.path, devices, options)
        one = Setup(model.path, devices[:1], replace(options, split_mode="none", tensor_split=None))
        outcome, _ = compared(mine, one, RandomTokens(n_tokens, seed), None)
    print_verdict(outcome)
    ctx.exit(0 if outcome.ok else 1)
