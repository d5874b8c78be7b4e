"""``pyggml plan``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import ModelCommand, model_options, options_of
from .terminal import stderr, stdout

if TYPE_CHECKING:
    from ..plan import SplitPlan

__all__ = ["plan"]

_FILE = click.Path(dir_okay=False, writable=True, allow_dash=True)
_READ = click.Path(dir_okay=False)
# as pyggml.plan.diff.ASPECTS: help loads no values
_ASPECTS = click.Choice(["devices", "memory", "host", "strides", "flags", "asked", "rules", "views"])


@click.command(cls=ModelCommand)
@click.argument("model", type=_READ)
@model_options
@click.option("-n", "--n-tokens", type=click.IntRange(1), default=None, help="Tokens of the planned decode: 1 (the default) is generation, more a prompt. --check looks at both unless told.")
@click.option("--n-past", type=click.IntRange(0), default=0, show_default=True, help="Tokens in the cache before it.")
@click.option("--detail", type=click.Choice(["layers", "nodes", "all"]), default="nodes", show_default=True, help="A line a layer, computed nodes, or views, weights and inputs too.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Show identical layers once.")
@click.option("--tree", is_flag=True, help="A tree of layers, subgraphs and nodes instead of the table.")
@click.option("--explain", "explained", multiple=True, metavar="NODE", help="Why this tensor is split as it is, back to the rule that decided it; may be repeated.")
@click.option("--picture", "pictured", multiple=True, metavar="NODE", help="Draw what each device has of this tensor; may be repeated.")
@click.option("--diff", "other", type=_READ, metavar="OTHER.json", help="What differs from a plan that --json wrote (that one is the one before). Exit status 1: something does.")
@click.option("--ignore", "ignored", type=_ASPECTS, multiple=True, help="Leave this out of --diff; may be repeated.")
@click.option("--check", "checking", is_flag=True, help="Everything that would be refused or computed wrongly, at once, with repairs, instead of the first. Exit status 1: something would.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page: searchable, with the graph, memory, and an explanation of every node. One file that needs no network.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write the plan as JSON, for --diff, for assert_plan() in tests, for a person's own tools.")
@click.option("--csv", "csv_file", type=_FILE, metavar="FILE", help="Write a line for every node, weight and input.")
@click.option("--dot", "dot_file", type=_FILE, metavar="FILE", help="Write the graph for Graphviz (as detailed as --detail).")
@click.option("--mermaid", "mermaid_file", type=_FILE, metavar="FILE", help="Write the graph for Mermaid, as Markdown pages show it.")
@click.option("--save-rules", "rules_file", type=click.Path(dir_okay=False, writable=True), metavar="FILE", help="Write the splits of all weights and caches as rules (JSON, or TOML by its name), to be changed and given back with --rule @FILE.")
@click.pass_context
def plan(ctx: click.Context, /, model: str, **given: Any) -> None:
    """Show what ggml infers for MODEL: every split, all-reduce and byte, without loading the weights.

    MODEL is a GGUF file (one that was cut behind its header is enough), or a plan that --json wrote. ggml's own inference
    runs on simulated twins of the devices: they allocate and compute nothing, and need not exist (-dev sim:4@24GiB).

    \b
    How to read a split (axes are ggml's: axis 0 is contiguous)
      M            every device has all of it
      S0 192:64    axis 0 is split: 192 indices on the first device, 64 on the second
      P            every device has a summand; an all-reduce adds them up
      (P)          computed from such summands: the all-reduce comes later

    \b
    A change, step by step
      pyggml plan MODEL.gguf -dev vcpu:2 --json before.json       what there is
      pyggml plan MODEL.gguf -dev vcpu:2 --explain ffn_out-3      why, back to the rule
      pyggml plan MODEL.gguf -dev vcpu:2 --rule 'ffn=M' --check   would another rule be legal? if not, what would be
      pyggml plan MODEL.gguf -dev vcpu:2 --rule 'ffn=M' --diff before.json    what it changes: splits, sums, memory
      pyggml plan MODEL.gguf -dev vcpu:2 --rule 'ffn=M' --html plan.html      all of it, to look around in

    FILE may be '-', the output, which then has nothing else. The exit status is 1 when --diff finds a difference or --check a
    violation, 2 for errors.
    """
    if not given["other"] and given["ignored"]:
        raise click.UsageError("--ignore is about --diff")
    to_output = [name for name in _FILES if given[name] == "-"]
    if len(to_output) > 1 or (to_output and (given["explained"] or given["pictured"] or given["other"] or given["tree"])):
        raise click.UsageError("'-' is the output, which then has nothing else: write to a file")
    stored = _is_plan(model)
    if stored and (useless := _given(ctx) - _OF_PLANS):
        raise click.UsageError(f"{model} is a plan, which is shown as it is: {', '.join(sorted(useless))} {'needs' if len(useless) == 1 else 'need'} the model")
    status = _checked(model, given) if given["checking"] else 0
    if given["checking"] and not _wants_plan(given):
        ctx.exit(status)
    found = _read(model) if stored else _planned(model, given)
    other = _read(given["other"]) if given["other"] else None
    _write(found, model, given)
    if to_output:
        ctx.exit(status)
    asked = given["explained"] or given["pictured"] or given["checking"]
    for name in given["explained"]:
        click.echo(str(found.explain(_tensor(found, name))))
    for name in given["pictured"]:
        found.picture(_tensor(found, name)).print(stdout())
    if other is not None:
        diff = other.diff(found).without(*given["ignored"])
        click.echo(f"from {given['other']} (before) to {model} (after):")
        diff.render(stdout(), fold=given["fold"], views=given["detail"] == "all")
        status = status or int(bool(diff))
    elif given["tree"]:
        found.tree(given["detail"], fold=given["fold"]).print(stdout())
    elif not asked:
        found.render(stdout(), fold=given["fold"], detail=given["detail"])
    ctx.exit(status)


# options that need no model
_OF_PLANS = {"--detail", "--fold", "--tree", "--explain", "--picture", "--diff", "--ignore", "--html", "--json", "--csv", "--dot", "--mermaid", "--save-rules"}


def _given(ctx: click.Context) -> set[str]:
    """The options that are on the command line."""
    options = (p for p in ctx.command.params if isinstance(p, click.Option) and p.name)
    return {max(p.opts, key=len) for p in options if ctx.get_parameter_source(str(p.name)) == click.core.ParameterSource.COMMANDLINE}


_FILES = ("html_file", "json_file", "csv_file", "dot_file", "mermaid_file")


def _tensor(found: SplitPlan, name: str) -> str | int:
    """A name, or the index of a node that has none."""
    return int(name) if name.isdigit() and name not in found and int(name) < len(found) else name


def _wants_plan(given: dict[str, Any]) -> bool:
    """Whether something else than a check was asked for."""
    return bool(given["explained"] or given["pictured"] or given["other"] or given["tree"] or given["rules_file"] or any(given[name] for name in _FILES))


def _checked(model: str, given: dict[str, Any]) -> int:
    """Prints the report; the exit status."""
    from ..model import check_model

    with _waiting("checking"):
        report = check_model(model, given["device"], n_tokens=given["n_tokens"], n_past=given["n_past"], rules=given["rules"], options=options_of(given))
    console = stderr() if any(given[name] == "-" for name in _FILES) else stdout()
    console.print(str(report), style="" if report.ok else "red", markup=False, highlight=False, soft_wrap=True)
    if not report.ok and _wants_plan(given):
        click.echo("what is refused has no plan: nothing else is shown", err=True)
        click.get_current_context().exit(1)
    return 0 if report.ok else 1


def _planned(model: str, given: dict[str, Any]) -> SplitPlan:
    from ..errors import SplitError
    from ..model import plan_model

    with _waiting("planning"):
        try:
            return plan_model(model, given["device"], n_tokens=given["n_tokens"] or 1, n_past=given["n_past"], rules=given["rules"], options=options_of(given))
        except SplitError:
            if not given["rules"]:  # with rules of one's own, all is said at once
                click.echo("this is the first that is refused; --check lists all of it, with repairs", err=True)
            raise


def _waiting(what: str) -> Any:
    console = stderr()
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _is_plan(path: str) -> bool:
    """Whether a file is JSON: a GGUF file is not, nor is what is not there."""
    try:
        with open(path, "rb") as file:
            return file.read(16).lstrip()[:1] == b"{"
    except OSError:
        return False


def _read(path: str) -> SplitPlan:
    from ..errors import FileFormatError
    from ..plan import SplitPlan

    try:
        return SplitPlan.from_json(Path(path).read_bytes())
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None


def _write(found: SplitPlan, model: str, given: dict[str, Any]) -> None:
    """The files that were asked for; '-' is the output."""
    from ..report.view import write_text

    detail, fold = given["detail"], given["fold"]
    makers: dict[str, Callable[[], str]] = {
        "html_file": lambda: found.to_html(title=Path(model).name),
        "json_file": lambda: found.to_json(indent=1),
        "csv_file": found.to_csv,
        "dot_file": lambda: found.to_dot(detail, fold=fold),
        "mermaid_file": lambda: found.to_mermaid("layers" if detail == "nodes" else detail, fold=fold),
    }
    if given["rules_file"]:
        from ..rules_file import save_rules

        save_rules(given["rules_file"], found.split_rules())
        click.echo(f"rules written to {given['rules_file']}", err=True)
    for name, make in makers.items():
        target = given[name]
        if target == "-":
            click.echo(make())
        elif target:
            write_text(make(), target)
            click.echo(f"{name.removesuffix('_file')} written to {target}", err=True)
