"""The figures of a call as a table in a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- made by tools/measure_call.py -->"
END: Final = "<!-- end of what tools/measure_call.py made -->"
HEAD: Final = "| row | avatar | figure | must | aim | measured |\n|---|---|---|---|---|---|\n"
MARKS: Final = {"aim": "", "must": " (short of the aim)", "none": " **(missed)**"}


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a line for every goal of every entry of ``docs/figures.json`` that has goals."""
    measured = {name: entry for name, entry in results.items() if "goals" in entry}
    return HEAD + "".join(_line(name, entry, goal) for name, entry in measured.items() for goal in entry["goals"])


def conditions(results: Mapping[str, Any]) -> str:
    """Under which commits, on which machines, and how quiet these were."""
    entries = [entry for entry in results.values() if "goals" in entry]
    if not entries:
        return "Nothing was measured yet.\n"
    commits = ", ".join(sorted({entry["commit"] for entry in entries}))
    machines = sorted({f"{e['machine']['processor']}, {e['machine']['cores']} cores" for e in entries})
    others = max(entry["others_cores"] for entry in entries)
    return f"Commit {commits}; {'; '.join(machines)}; other programs kept at most {others:g} cores busy.\n"


def write_into(document: Path, text: str) -> None:
    """Replace what stands between the markers of a document; SystemExit where there are none."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} lacks the lines {BEGIN!r} and {END!r}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _line(name: str, entry: Mapping[str, Any], goal: Mapping[str, Any]) -> str:
    sign = "≥" if goal["least"] else "≤"
    value = "none" if goal["value"] is None else f"{goal['value']:g}{goal['unit']}"
    avatar = "learned" if entry["learning"] else "frozen"
    bounds = " | ".join(f"{sign} {goal[bound]:g}{goal['unit']}" for bound in ("must", "aim"))
    return f"| {name.removeprefix('call-')} | {avatar} | {goal['name']} | {bounds} | {value}{MARKS[goal['met']]} |\n"
