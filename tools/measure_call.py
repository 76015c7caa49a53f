"""Measure one figure of a call, with the real daemon and a real Chromium on this machine.

    python tools/measure_call.py received --json received.json
    python tools/measure_call.py latency --freeze
    python tools/measure_call.py table --write docs/media.md

Prints one line with each value beside its bound and its aim.  docs/media.md explains the rows and
how they are measured.
``table`` measures nothing: it writes the figures of ``make figures`` into a document.
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

from call_figures.background_load import BackgroundLoad
from call_figures.bad_networks import measure_links
from call_figures.browser import version
from call_figures.conditions import Conditions
from call_figures.delay import measure_audio_offset, measure_latency, measure_round_trip, measure_zeromq_delay
from call_figures.goals import Figures, Goal
from call_figures.lip_sync import measure_lip_sync
from call_figures.load import measure_killed_tab, measure_reconnects, measure_viewers
from call_figures.stream import measure_first_frame, measure_gaps, measure_received
from call_figures.table import conditions as measured_on
from call_figures.table import table, write_between

from telepresence.measure.machine import describe_machine, source_commit

ROOT: Final = Path(__file__).resolve().parent.parent
"""Root of the checkout."""

SCRATCH: Final = ROOT / "out" / "figures"
"""Folder for videos, avatars and logs; ignored by git."""

RESULTS: Final = ROOT / "docs" / "figures.json"
"""Figures that ``table`` reads."""

SHARED: Final = Path(os.environ.get("TELEPRESENCE_SHARED", ROOT.parent / "shared"))
"""Folder of test material."""
CLIP: Final = SHARED / "clips" / "d9.mp4"
"""Video of a face."""
MODELS: Final = SHARED / "models"
"""Folder with the model files of MediaPipe, used unless ``TELEPRESENCE_MODELS`` names another."""
QUIET_CORES: Final = 0.1
"""Load by other programs, in cores, above which the machine counts as busy."""

Measurement = Callable[[Conditions], tuple[Figures, list[Goal]]]
"""Function that measures one row of the table: its figures, and the goals that they are compared with."""

ROWS: Final[dict[str, Measurement]] = {
    "received": measure_received,
    "latency": measure_latency,
    "round-trip": measure_round_trip,
    "viewers": measure_viewers,
    "first-frame": measure_first_frame,
    "links": measure_links,
    "audio": measure_audio_offset,
    "lips": measure_lip_sync,
    "killed-tab": measure_killed_tab,
    "reconnects": measure_reconnects,
    "zeromq": measure_zeromq_delay,
    "gaps": measure_gaps,
}
"""Measurements, by the name on the command line."""


def main() -> None:
    """Parse the arguments, measure, print the goals, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "table"])
    parser.add_argument("--freeze", action="store_true", help="do not train the avatar during the call")
    parser.add_argument("--source", help="source of the daemon; by default a test video made of the clip")
    parser.add_argument("--clip", type=Path, help="video of a face; by default d9 of the test material, or the actor")
    parser.add_argument("--actor", action="store_true", help="make the test video of the synthetic actor")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the measurement; 20")
    parser.add_argument("--settle", type=float, default=8.0, help="wait before the measurement; 8")
    parser.add_argument("--minutes", type=float, default=30.0, help="for reconnects: minutes with one viewer; 30")
    parser.add_argument("--link", help="for links: only those whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of the daemon")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="for table: the document to write it into")
    options = parser.parse_args()

    if options.row == "table":
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        text = f"{table(results)}\n{measured_on(results)}"
        print(text) if options.write is None else write_between(options.write, text)
        return
    os.chdir(ROOT)
    if MODELS.is_dir():
        os.environ.setdefault("TELEPRESENCE_MODELS", str(MODELS))
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
        row = partial(measure_reconnects, minutes=options.minutes)
    elif options.row == "links":
        row = partial(measure_links, only=options.link)
    before, measured = BackgroundLoad(), source_commit()
    figures, goals = row(conditions)
    others = before.others()
    print(f"{options.row}: {'; '.join(map(str, goals))}")
    if others > QUIET_CORES:
        print(f"  the machine was busy: other programs kept {others:g} cores busy")
    if options.json is not None:
        found = {
            "command": shlex.join(["python", "tools/measure_call.py", *_without_json(sys.argv[1:])]),
            "chromium": version(),
            "learning": conditions.learning,
            "others_cores": others,
            "goals": [goal.figures() for goal in goals],
            **figures,
        }
        report = {"commit": measured, "machine": describe_machine(), **found}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_json(arguments: list[str]) -> list[str]:
    """The arguments without ``--json FILE``."""
    at = arguments.index("--json") if "--json" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    main()
