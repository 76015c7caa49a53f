"""``telepresence doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from telepresence import __version__


def doctor(*, models: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Print the findings and return them as ``{"version", "findings": [{topic, found, ok, advice}]}``.

    ``models`` is a folder to look for MediaPipe's model files in, before the user's cache.  ``quiet`` prints nothing.
    A broken driver or library is a finding, never a traceback.
    """
    from rich.console import Console

    from telepresence.checkup import computing, machine, media, network
    from telepresence.checkup.examination import examine
    from telepresence.checkup.models import model_files

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
        network.ports,
        machine.for_tests,
    )
    console = Console(soft_wrap=True, highlight=False, quiet=quiet)  # addresses and paths stay whole, to be copied
    findings = []
    for finding in examine(probes):
        findings.append(finding)
        sign = {True: "[green]ok[/]", False: "[red]--[/]", None: "  "}[finding.ok]
        console.print(f"{sign}  {finding.topic:<18} {_plain(finding.found)}")
        if finding.advice:
            console.print(f"    {'':<18} [yellow]{_plain(finding.advice)}[/]")
    broken = [finding.topic for finding in findings if finding.ok is False]
    console.print(f"To mend: {', '.join(broken)}." if broken else "Nothing is missing that a call needs.")
    return {"version": __version__, "findings": [asdict(finding) for finding in findings]}


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
