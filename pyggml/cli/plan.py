"""``pyggml plan``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from .options import ModelCommand, model_options, options_of
from .terminal import stderr, stdout

__all__ = ["plan"]


@click.command(cls=ModelCommand)
@click.argument("model", type=click.Path(dir_okay=False))
@model_options
@click.option("-n", "--n-tokens", type=click.IntRange(1), default=1, show_default=True, help="Tokens of the planned decode: 1 is generation, more a prompt.")
@click.option("--n-past", type=click.IntRange(0), default=0, show_default=True, help="Tokens in the cache before it.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, allow_dash=True), help="Write the plan as JSON ('-': to the output).")
@click.option("--save-rules", "rules_file", type=click.Path(dir_okay=False, writable=True), help="Write the splits of all weights and caches as rules (JSON, or TOML by its name), to be changed and given back with --rule @FILE.")
@click.option("--detail", type=click.Choice(["layers", "nodes", "all"]), default="nodes", show_default=True, help="A line a layer, computed nodes, or views too.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Show identical layers once.")
def plan(model: str, n_tokens: int, n_past: int, json_file: str | None, rules_file: str | None, detail: str, fold: bool, **given: Any) -> None:
    """Show what ggml infers for MODEL: every split, all-reduce and byte, without loading the weights.

    A file that was cut behind its header is enough. Nothing is allocated on a device.
    """
    from ..model import plan_model

    console = stderr()
    with console.status("planning") if console.is_terminal else contextlib.nullcontext():
        found = plan_model(model, given["device"], n_tokens=n_tokens, n_past=n_past, rules=given["rules"], options=options_of(given))
    if rules_file:
        from ..rules_file import save_rules

        save_rules(rules_file, found.split_rules())
        click.echo(f"rules written to {rules_file}", err=True)
    if json_file == "-":
        click.echo(found.to_json(indent=1))
        return
    found.render(stdout(), fold=fold, detail=detail)  # type: ignore[arg-type]
    if json_file:
        Path(json_file).write_text(found.to_json(indent=1), encoding="utf-8")
        click.echo(f"plan written to {json_file}", err=True)
