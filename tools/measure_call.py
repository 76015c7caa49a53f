"""Measure one thing of a call, with the real daemon and a real Chromium on this machine.

    python tools/measure_call.py received --json received.json
    python tools/measure_call.py latency --freeze
    python tools/measure_call.py table --write docs/media.md

Prints a line that says what was found beside what must be and what is aimed at.  What each row means, and how it is
measured, is in docs/media.md.  ``table`` measures nothing: it puts what ``make figures`` has measured into a
document.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from call_figures.browser import version
from call_figures.conditions import Conditions
from call_figures.delay import latency, round_trip, sound, zeromq
from call_figures.goals import Figures, Goal
from call_figures.links import links
from call_figures.lips import lips
from call_figures.load import killed_tab, reconnects, viewers
from call_figures.machine import Quiet, commit, machine
from call_figures.stream import first_frame, gaps, received
from call_figures.table import conditions as measured_on
from call_figures.table import table, write_into

ROOT: Final = Path(__file__).resolve().parent.parent
SCRATCH: Final = ROOT / "out" / "figures"
RESULTS: Final = ROOT / "docs" / "figures.json"
CLIP: Final = Path(os.environ.get("TELEPRESENCE_SHARED", ROOT.parent / "shared")) / "clips" / "d9.mp4"
QUIET_CORES: Final = 0.1

Row = Callable[[Conditions], tuple[Figures, list[Goal]]]

ROWS: Final[dict[str, Row]] = {
    "received": received,
    "latency": latency,
    "round-trip": round_trip,
    "viewers": viewers,
    "first-frame": first_frame,
    "links": links,
    "sound": sound,
    "lips": lips,
    "killed-tab": killed_tab,
    "reconnects": reconnects,
    "zeromq": zeromq,
    "gaps": gaps,
}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "table"])
    parser.add_argument("--freeze", action="store_true", help="the avatar is shown, not learned on")
    parser.add_argument("--source", help="what is before the camera; else a film of the clip, as a file")
    parser.add_argument("--clip", type=Path, help="a video of a face; else d9 of the test material, or the actor")
    parser.add_argument("--actor", action="store_true", help="the film is of the synthetic actor")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long is measured; 20")
    parser.add_argument("--settle", type=float, default=8.0, help="how long is waited before; 8")
    parser.add_argument("--minutes", type=float, default=30.0, help="of reconnects: with one viewer; 30")
    parser.add_argument("--link", help="of links: this one only, by a part of its name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the daemon")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="of table: where it goes")
    options = parser.parse_args()

    if options.row == "table":
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        text = f"{table(results)}\n{measured_on(results)}"
        print(text) if options.write is None else write_into(options.write, text)
        return
    os.chdir(ROOT)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    clip = options.clip or (CLIP if CLIP.is_file() else None)
    more = tuple(word for change in options.set for word in ("--set", change))
    conditions = Conditions(
        SCRATCH,
        None if options.actor else clip,
        options.source,
        options.seconds,
        options.settle,
        not options.freeze,
        more,
    )
    row = ROWS[options.row]
    if options.row == "reconnects":
        row = partial(reconnects, minutes=options.minutes)
    elif options.row == "links":
        row = partial(links, only=options.link)
    before, measured = Quiet(), commit()
    figures, goals = row(conditions)
    others = before.others()
    print(f"{options.row}: {'; '.join(map(str, goals))}")
    if others > QUIET_CORES:
        print(f"  not a quiet machine: other programs kept {others:g} cores busy")
    if options.json is not None:
        found = {
            "command": shlex.join(["python", "tools/measure_call.py", *_without_json(sys.argv[1:])]),
            "chromium": version(),
            "learning": conditions.learning,
            "others_cores": others,
            "goals": [goal.figures() for goal in goals],
            **figures,
        }
        report = {"commit": measured, "machine": machine(), **found}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_json(arguments: list[str]) -> list[str]:
    """The command without where its answer went."""
    at = arguments.index("--json") if "--json" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    main()
