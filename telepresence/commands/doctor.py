"""`telepresence doctor`: check hardware, packages and files, and advise how to fix what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from telepresence import __version__
from telepresence.commands.options import ModelsOption, write_json


def command(
    models: ModelsOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the findings to this JSON file; - prints them instead."),
    ] = None,
) -> None:
    """Check what this machine has and what is missing, and say how to fix it."""
    printed = json_file == Path("-")
    findings = doctor(models=models, quiet=printed)
    if printed:
        typer.echo(json.dumps(findings, indent=2))
    else:
        write_json(json_file, findings)


def doctor(*, models: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Check this machine, print the findings, and return ``{"version", "findings": [{topic, found, ok, advice}]}``.

    ``models`` is a folder that is searched for MediaPipe's model files before the user's cache.  ``quiet`` prints
    nothing.  A broken driver or library is a finding and raises nothing.
    """
    from rich.console import Console

    from telepresence.checkup import computing, machine, media, network
    from telepresence.checkup.models import model_files
    from telepresence.checkup.probe_runner import run_probes

    probes = (
        machine.system,
        machine.packages,
        computing.torch_build,
        computing.gpu,
        computing.kernels,
        computing.head_model,
        media.camera,
        media.codecs,
        media.webrtc,
        media.virtual_camera,
        partial(model_files, models),
        machine.libraries,
        machine.preview,
        machine.folders,
        machine.unfinished_files,
        network.ports,
        machine.for_tests,
    )
    console = Console(soft_wrap=True, highlight=False, quiet=quiet)  # unwrapped paths can be copied
    findings = []
    for finding in run_probes(probes):
        findings.append(finding)
        sign = {True: "[green]ok[/]", False: "[red]--[/]", None: "  "}[finding.ok]
        console.print(f"{sign}  {finding.topic:<18} {_plain(finding.found)}")
        if finding.advice:
            console.print(f"    {'':<18} [yellow]{_plain(finding.advice)}[/]")
    broken = [finding.topic for finding in findings if finding.ok is False]
    console.print(f"To fix: {', '.join(broken)}." if broken else "Everything that a call needs is available.")
    return {"version": __version__, "findings": [asdict(finding) for finding in findings]}


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
