"""``pyggml devices``."""

from __future__ import annotations

import click

from .terminal import stdout

__all__ = ["devices"]


@click.command()
def devices() -> None:
    """List the devices that ggml found, and what else can be used as one."""
    from rich.table import Table

    from .. import device as d
    from .._units import binary

    table = Table(box=None, pad_edge=False)
    for head in ("name", "type", "backend", "memory free / total", "description"):
        table.add_column(head)
    for one in [*d.devices(), *d.virtual_cpus(1)]:
        memory = one.memory
        table.add_row(one.name, one.type, one.backend, f"{binary(memory.free)} / {binary(memory.total)}", one.description)
    console = stdout()
    console.print(table)
    console.print(
        "\nVCPU devices are made on demand: -dev vcpu:2 is two of them, vcpu:2x4 of four threads each. "
        "-dev sim:2@24GiB is two simulated devices, for plans; -dev sim:rtx3090@24GiB,sim:rtx4060@8GiB two unlike ones. -dev rpc:HOST:PORT is an RPC server."
    )
