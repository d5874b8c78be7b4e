"""The command line. Each command has a file of its own; what they need of pyggml is imported when they run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from .._about import __version__
from .bench import bench
from .compare import compare
from .demo import demo
from .devices import devices
from .plan import plan
from .run import run
from .trace import trace

__all__ = ["main"]


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
    pyggml run MODEL.gguf -dev CUDA0,CUDA1 -p "Once"         a text, continued by the split model
    pyggml bench MODEL.gguf -dev CUDA0,CUDA1                 how fast, unsplit, by layers and split
    pyggml trace MODEL.gguf -dev CUDA0,CUDA1 --perfetto out  where the time goes
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, format="%(message)s")


for command in (devices, demo, plan, compare, run, bench, trace):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``pyggml`` command. Errors of pyggml are one message and status 2; Ctrl-C is status 130."""
    from ..errors import Error

    for stream in (sys.stdout, sys.stderr):  # tables have characters that an output of ASCII has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
