"""Markdown table with the figures of a call, and the text between two markers of a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- made by tools/measure_call.py -->"
"""Line of a document before the generated table."""

END: Final = "<!-- end of what tools/measure_call.py made -->"
"""Line of a document after the generated table."""

HEAD: Final = "| row | avatar | figure | must | aim | measured |\n|---|---|---|---|---|---|\n"
"""Heading of the table."""

MARKS: Final = {"aim": "", "must": " (short of the aim)", "none": " **(missed)**"}
"""Text after a measured value, by the bound that it keeps."""


def table(results: Mapping[str, Any]) -> str:
    """Markdown table: one line for every goal of every entry of ``docs/figures.json`` that has goals."""
    measured = {name: entry for name, entry in results.items() if "goals" in entry}
    return HEAD + "".join(_line(name, entry, goal) for name, entry in measured.items() for goal in entry["goals"])


def conditions(results: Mapping[str, Any]) -> str:
    """One line with the commits and machines of the figures, and the load by other programs."""
    entries = [entry for entry in results.values() if "goals" in entry]
    if not entries:
        return "Nothing was measured yet.\n"
    commits = ", ".join(sorted({entry["commit"] for entry in entries}))
    machines = sorted({f"{e['machine']['processor']}, {e['machine']['cores']} cores" for e in entries})
    others = max(entry["others_cores"] for entry in entries)
    return f"Commit {commits}; {'; '.join(machines)}; other programs kept at most {others:g} cores busy.\n"


def write_between(document: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace the text between the lines ``begin`` and ``end`` of a document; SystemExit if it lacks them."""
    before, first, rest = document.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise SystemExit(f"{document} lacks the lines {begin!r} and {end!r}: add them where the table belongs")
    document.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def _line(name: str, entry: Mapping[str, Any], goal: Mapping[str, Any]) -> str:
    sign = "≥" if goal["least"] else "≤"
    value = "none" if goal["value"] is None else f"{goal['value']:g}{goal['unit']}"
    avatar = "learned" if entry["learning"] else "frozen"
    bounds = " | ".join(f"{sign} {goal[bound]:g}{goal['unit']}" for bound in ("must", "aim"))
    return f"| {name.removeprefix('call-')} | {avatar} | {goal['name']} | {bounds} | {value}{MARKS[goal['met']]} |\n"
