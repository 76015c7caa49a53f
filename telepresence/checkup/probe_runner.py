"""Runner of probes in a child process, so that a broken driver or library cannot end `telepresence doctor`.

A broken driver or library raises, ends the process, or hangs.  In the last two cases the child process is replaced.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Final

from telepresence.checkup.finding import Finding, Probe

PATIENCE_S: Final = 60.0
"""Seconds after which a probe counts as hanging."""


def run_probes(probes: Sequence[Probe], patience_s: float = PATIENCE_S) -> Iterator[Finding]:
    """Run ``probes`` in a child process and yield their findings in order; a probe that fails yields a finding too.

    Probes must be importable: module-level functions, or `functools.partial` of such functions.
    """
    current = 0
    while current < len(probes):
        own_end, child_end = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(tuple(probes[current:]), child_end), name="doctor", daemon=True
        )
        process.start()
        child_end.close()
        reason = ""
        try:
            while current < len(probes):
                if not own_end.poll(patience_s):
                    reason = f"no answer within {patience_s:.0f} s"
                    break
                findings, error_text = own_end.recv()
                yield from findings
                if error_text:
                    yield _failed(probes[current], error_text)
                current += 1
        except EOFError:
            process.join(patience_s)
            reason = f"it ended the process (exit status {process.exitcode})"
        finally:
            own_end.close()
            if process.is_alive():
                process.kill()
            process.join(patience_s)
        if current < len(probes):
            yield _failed(probes[current], reason)
            current += 1


def _run(probes: Sequence[Probe], results: Connection) -> None:
    for probe in probes:
        findings: list[Finding] = []
        error_text = ""
        try:
            for finding in probe():
                findings.append(finding)  # noqa: PERF402 - keeps the findings before a failure
        except Exception as error:  # a broken library may raise anything
            error_text = f"{type(error).__name__}: {error}"
        results.send((findings, error_text))


def _failed(probe: Probe, reason: str) -> Finding:
    name = getattr(probe, "func", probe).__name__.replace("_", " ")
    return Finding(name, f"could not be checked: {reason}", ok=None)
