"""Runs probes so that nothing that they touch can take the doctor down.

A driver or a library that is broken raises at best; else it ends the process, or hangs.  So probes run in a process of
their own, which is replaced when that happens.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Final

from telepresence.checkup.finding import Finding, Probe

PATIENCE_S: Final = 60.0
"""A probe that takes longer hangs."""


def run_probes(probes: Sequence[Probe], patience_s: float = PATIENCE_S) -> Iterator[Finding]:
    """What ``probes`` find, in their order; a probe that fails is a finding itself.

    Probes must be importable: functions of a module, or `functools.partial` of such.
    """
    begun = 0
    while begun < len(probes):
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_look, args=(tuple(probes[begun:]), theirs), name="doctor", daemon=True
        )
        process.start()
        theirs.close()
        why = ""
        try:
            while begun < len(probes):
                if not ours.poll(patience_s):
                    why = f"no answer within {patience_s:.0f} s"
                    break
                findings, trouble = ours.recv()
                yield from findings
                if trouble:
                    yield _failed(probes[begun], trouble)
                begun += 1
        except EOFError:
            process.join(patience_s)
            why = f"it ended the process (exit status {process.exitcode})"
        finally:
            ours.close()
            if process.is_alive():
                process.kill()
            process.join(patience_s)
        if begun < len(probes):
            yield _failed(probes[begun], why)
            begun += 1


def _look(probes: Sequence[Probe], answers: Connection) -> None:
    for probe in probes:
        findings: list[Finding] = []
        trouble = ""
        try:
            for finding in probe():
                findings.append(finding)  # noqa: PERF402 - keeps what was found before a failure
        except Exception as error:  # the doctor's whole purpose
            trouble = f"{type(error).__name__}: {error}"
        answers.send((findings, trouble))


def _failed(probe: Probe, why: str) -> Finding:
    name = getattr(probe, "func", probe).__name__.replace("_", " ")
    return Finding(name, f"could not be looked at: {why}", ok=None)
