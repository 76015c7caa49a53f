"""`telepresence bench`: measure rendering and training on this machine, and print the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from telepresence.commands.options import (
    AvatarArgument,
    ConfigOptions,
    DeviceOption,
    JsonOption,
    option_groups,
    write_json,
)


@option_groups
def command(
    avatar: AvatarArgument,
    tracked: Annotated[Path, typer.Argument(metavar="TRACKED", help="Tracked folder of the same person.")],
    seconds: Annotated[
        float,
        typer.Option(metavar="S", min=0.1, max=3600.0, help="Seconds of training alone, and of display beside it."),
    ] = 10.0,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=1_000_000, help="Number of frames to time; default on a GPU: 10000."),
    ] = None,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=32, max=2048, help="Side of the rendered frames.")] = 512,
    backend: Annotated[str, typer.Option(metavar="auto|cuda|host|torch|tcnn", help="Backend to measure.")] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Measure only this part (docs/performance.md); may be given several times."),
    ] = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure this machine: frame time, training, each kernel, and the references they are compared with."""
    config = ConfigOptions().load(device)
    from telepresence.measure.bench.suite import run_benchmark

    figures = run_benchmark(
        avatar,
        tracked,
        backend=backend,
        size=size,
        frames=frames,
        seconds=seconds,
        only=only or (),
        device=config.run.device,
    )
    _print(figures)
    write_json(json_file, figures)


def _print(figures: dict[str, Any]) -> None:
    """Print the figures as a table, then the reasons for those that could not be measured."""
    from rich.console import Console
    from rich.table import Table

    from telepresence.measure.bench.suite import LEFT_OUT

    console = Console()
    title = " · ".join((figures["device"], figures["backend"], f"{figures['size']} px", str(figures["commit"])))
    console.print(f"[bold]{title}[/]")
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for column in ("median", "p95", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    remarks = []
    for key, name in _ROWS.items():
        value = figures.get(key)
        if value is not None:
            table.add_row(name, *([*_cells(value)] + [""] * 3)[:3])
        if figures["notes"].get(key, LEFT_OUT) != LEFT_OUT:
            remarks.append(f"{name}: {figures['notes'][key]}")
    console.print(table)
    for remark in remarks:
        console.print(remark, style="dim", markup=False)
    for key, name in _LINES.items():
        if isinstance(figures.get(key), dict) and figures[key]:
            console.print(f"[bold]{name}[/]: " + ", ".join(f"{k} {_number(v)}" for k, v in figures[key].items()))


_ROWS: Final[dict[str, str]] = {
    "frame_ms": "frame, ms",
    "frame_while_training_ms": "frame at 60 Hz while training, ms",
    "step_ms": "training step, ms",
    "train_msamples_per_s": "training, million samples a second",
    "training_share": "training rate beside the display, fraction of that alone",
    "field_inference_gpts": "field, inference, billion points a second",
    "field_training_gpts": "field, training, billion points a second",
    "nearest_triangle_gqps": "nearest triangle, billion queries a second",
    "first_frame_s": "first frame, s: warm, cold start",
    "host_frame_ms": "128 px on two threads of the processor, ms",
    "memory_gb": "memory, GB",
}
"""Titles of the rows of the table, by key of the figure."""

_LINES: Final[dict[str, str]] = {
    "scene": "in a frame",
    "training": "training",
    "torch": "torch reference",
    "host": "processor alone",
    "stages_ms": "stages of a frame, ms",
    "step_stages_ms": "stages of a step, ms",
    "torch_stages_ms": "stages of a frame in the torch reference, ms",
    "gsplat_ms": "gsplat's rasteriser, ms by Gaussians",
    "ceilings": "highest rates of the device",
}
"""Titles of the lines below the table, by key of the figures."""


def _cells(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [_number(value[name]) for name in value]
    return ["" if value is None else _number(value)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
