"""Ablation study of the configuration: ``python tools/ablate.py TRACKED... [--seconds 15]``.

Learns an avatar of every tracked folder (or of the synthetic actor, for the word ``synthetic``) with every switch of
`SWITCHES`, and appends the figures to a file of JSON lines, one a run.  Runs that the file already has from the same
commit are skipped, so that an interrupted study can be continued.  ``--write docs/quality.md`` writes the tables into
that document, between its markers; without folders nothing is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from call_figures.table import write_between

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import REGIONS
from telepresence.config import load_config
from telepresence.measure.machine import source_commit
from telepresence.measure.offline.recordings import Recording, open_recording
from telepresence.measure.offline.training import learn_avatar
from telepresence.runtime.hardware import processor_name

BEGIN, END = "<!-- made by tools/ablate.py -->", "<!-- end of what tools/ablate.py made -->"
HOLDOUT = 0.125  # fraction of the frames that is held back and measured on
PRESETS = ("paper", "default")  # the switches that the first table compares

Record = dict[str, Any]


@dataclass(frozen=True)
class Switch:
    """One configuration of the study: a preset, and settings that differ from it.

    Attributes:
        what: description for the tables.
        settings: values of ``--set``.
        preset: name of the preset; None is the one for the device.
    """

    what: str
    settings: tuple[str, ...] = ()
    preset: str | None = None


SWITCHES = {
    "default": Switch("the default"),
    "paper": Switch("INSTA as published", preset="insta_paper"),
    "poses-tracked": Switch("no pose refinement", ("avatar.pose_refinement.rate=0.0",)),
    "warp-triangle": Switch("warp of the nearest triangle alone", ("avatar.warp.blend=triangle",)),
    "warp-neighbours": Switch(
        "warp averaged with the triangle's neighbours, as INSTA", ("avatar.warp.blend=neighbours",)
    ),
    "scale-area": Switch("offsets scale with areas, around the eyes, as INSTA", ("avatar.warp.scale=area",)),
    "scale-none": Switch("offsets do not scale", ("avatar.warp.scale=none",)),
    "code-lips": Switch("expression code on the lips only, not faded, as INSTA", ("avatar.conditioning.code=lips",)),
    "code-raw": Switch("codes not standardised", ("avatar.conditioning.standardise=false",)),
    "code-free": Switch("codes not projected to the range seen in training", ("avatar.conditioning.pull_in=false",)),
    "code-regions": Switch(
        "expression code at mouth and eyes only",
        ("avatar.conditioning.head_part=false", "avatar.learn.code_jitter=0.05"),
    ),
    "code-still": Switch("no noise on the codes", ("avatar.learn.code_jitter=0.0",)),
    "field-large": Switch(
        "hash grid of INSTA, 16 x 8 at 2^18",
        ("avatar.radiance.levels=16", "avatar.radiance.features=8", "avatar.radiance.log2_entries=18"),
    ),
    "networks-small": Switch(
        "one hidden layer less in either network",
        ("avatar.radiance.density_layers=1", "avatar.radiance.colour_layers=2"),
    ),
    "direction-4": Switch("view directions to degree 3 of spherical harmonics", ("avatar.radiance.direction_bands=4",)),
    "ray-through": Switch("rays continue behind the first surface", ("avatar.sampling.behind=0.3",)),
    "no-inpainting": Switch("unseen parts not inpainted", ("avatar.occupancy.inpaint=false",)),
    "no-silhouettes": Switch("silhouettes empty no cells", ("avatar.occupancy.silhouettes=false",)),
    "matte-binary": Switch("binary matte", ("avatar.learn.binary_matte=true",)),
    "no-mask-loss": Switch("no opacity loss", ("avatar.learn.mask_weight=0.0",)),
    "no-depth": Switch("no depth loss", ("avatar.learn.depth_weight=0.0",)),
    "mouth-1": Switch("no extra weight of mouth pixels", ("avatar.learn.mouth_weight=1.0",)),
    "rays-anywhere": Switch("rays from the whole image", ("avatar.learn.focus=0.0", "avatar.learn.margin=0.0")),
}

NONE = "-"  # cell of a table without a figure
PSNR = ("psnr_db", "head_psnr_db", "mouth_psnr_db", "eyes_psnr_db")
KEPT = (
    *(f"{region}{metric}" for region in ("", "head_", "mouth_", "eyes_") for metric in ("psnr_db", "ssim", "flip")),
    *("lpips", "steadiness", "steadiness_pairs", "train_psnr_db", "train_head_psnr_db"),
    *("unseen_yaw20_psnr_db", "unseen_yaw30_psnr_db", "unseen_pitch15_psnr_db"),
    *("steps", "seconds", "size", "backend", "train_frames", "holdout_frames", "curve"),
)
"""Figures of a run that are written to the file of results."""


# ---- measuring


def run(
    source: str, recording: Recording, name: str, size: int, seconds: float, device: str, page: Path | None
) -> Record:
    """Figures of one switch on one recording; ``failed`` has the error of a run that failed."""
    switch, started = SWITCHES[name], time.monotonic()
    found: Record = {"clip": recording.name, "switch": name, "settings": list(switch.settings), "seconds": seconds}
    try:
        changes = [*switch.settings, f"avatar.learn.size={size}"]
        config = load_config(switch.preset, changes, device)
        figures = learn_avatar(
            recording, None, seconds=seconds, size=size, holdout=HOLDOUT, config=config, report=page, baseline=False
        )
        found |= {key: figures[key] for key in KEPT if key in figures}
        found["protocol"] = figures["protocol"]
    except Exception as error:  # the other runs can still be measured
        found |= {"size": size, "failed": f"{type(error).__name__}: {error}"[:300]}
    return found | {"source": source, "wall_seconds": round(time.monotonic() - started, 1)}


def measure(
    wanted: argparse.Namespace, known: list[Record], origin: Record, keep: Callable[[Record], None]
) -> Iterator[Record]:
    """Run everything that is wanted and not in ``known``, and yield each record after ``keep`` has stored it.

    ``origin`` has the commit, machine and time, which are added to every record.
    """
    began = time.monotonic()
    for source in wanted.sources:
        recording: Recording | None = None
        for name in wanted.only or SWITCHES:
            if any(_is_same_run(record, source, name, wanted, origin) for record in known):
                continue
            if wanted.until is not None and time.monotonic() - began + wanted.seconds > wanted.until:
                return
            if recording is None:  # the frames are read once
                config = load_config(None, [f"avatar.learn.size={wanted.size}"], wanted.device)
                recording = open_recording(source, wanted.size, HOLDOUT, config, None, None)
            page = wanted.reports / f"{recording.name}-{name}-{wanted.seconds:g}s.html" if wanted.reports else None
            record = origin | run(source, recording, name, wanted.size, wanted.seconds, wanted.device, page)
            keep(record)
            yield record
            _free_memory()


def _is_same_run(record: Record, source: str, name: str, wanted: argparse.Namespace, origin: Record) -> bool:
    """Whether a record is of this switch, source and commit, with the same settings, and did not fail."""
    settings = list(SWITCHES[name].settings)
    return "failed" not in record and (
        (record["source"], record["switch"], record["seconds"], record["size"], record["settings"], record["commit"])
        == (source, name, wanted.seconds, wanted.size, settings, origin["commit"])
    )


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine() -> str:
    """Name of the GPU, or of the processor with the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def read_records(path: Path) -> list[Record]:
    """Records of a file of JSON lines; none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


# ---- tables


def tables(records: Sequence[Record]) -> str:
    """Markdown tables: the presets compared, the effect of each switch, and unseen views of the actor."""
    newest = {_key(record): record for record in records if "failed" not in record}
    if not newest:
        return "Nothing has been measured yet.\n"
    found = list(newest.values())
    parts = [_presets(found), *_switches(found, records), _actor(found), _origin(found)]
    return "\n".join(part for part in parts if part)


def _key(record: Record) -> tuple[Any, ...]:
    return record["clip"], record["switch"], record["seconds"], record["size"], *record["settings"]


def _presets(records: list[Record]) -> str:
    """Table of the paper's preset and the default, trained longest."""
    rows = []
    for clip in _clips(records):
        those = [r for r in records if r["clip"] == clip and r["switch"] in PRESETS]
        if not those:
            continue
        longest = max(r["seconds"] for r in those)
        shown = [r for name in PRESETS for r in those if (r["switch"], r["seconds"]) == (name, longest)]
        rows += [
            [clip, r["switch"], f"{longest:g}", *(_db(r[m]) for m in PSNR), _part(r["ssim"]), _part(r["flip"]),
             _db(r.get("steadiness")), _db(r.get("train_head_psnr_db"))]
            for r in shown
        ]  # fmt: skip
    titles = ["clip", "what", "s", "whole", "head", "mouth", "eyes", "SSIM", "FLIP", "steadiness"]
    titles.append("head, learned from")
    return "### Paper preset and default\n\n" + _table(titles, rows) if rows else ""


def _switches(records: list[Record], all_records: Sequence[Record]) -> Iterator[str]:
    """Yield a table for each clip and training time: differences of each switch from the default of the same commit.

    ``all_records`` may have that default beside a newer one.
    """
    defaults = {(*_key(r), r["commit"]): r for r in all_records if r["switch"] == "default" and "failed" not in r}
    for clip in _clips(records):
        for seconds, size in sorted({(r["seconds"], r["size"]) for r in records if r["clip"] == clip}):
            kind = clip, seconds, size
            those = {r["switch"]: r for r in records if (r["clip"], r["seconds"], r["size"]) == kind}
            if "default" not in those or set(those) <= set(PRESETS):
                continue
            base = those["default"]
            rows = []
            for name in [n for n in SWITCHES if n in those] + [n for n in those if n not in SWITCHES]:
                r = those[name]
                same = defaults.get((*_key(base), r["commit"]), base)
                figures = [_db(r[m]) if name == "default" else _difference(r[m], same[m]) for m in PSNR]
                what = SWITCHES[name].what if name in SWITCHES else name
                rows.append([what, *figures, _part(r["ssim"]), _part(r["flip"]), str(r["steps"])])
            titles = ["switch", "whole", "head", "mouth", "eyes", "SSIM", "FLIP", "steps"]
            text = (
                f"### {clip}: each switch, {seconds:g} s\n\nPSNR in dB: of the default, and how much others differ.\n\n"
            )
            yield text + _table(titles, rows)


def _actor(records: list[Record]) -> str:
    those = [r for r in records if r.get("unseen_yaw30_psnr_db") is not None]
    views = ("psnr_db", "head_psnr_db", "unseen_yaw30_psnr_db", "unseen_pitch15_psnr_db", "unseen_yaw20_psnr_db")
    rows = [[r["switch"], f"{r['seconds']:g}", str(r["size"]), *(_db(r[v]) for v in views)] for r in those]
    titles = ["what", "s", "px", "held-out expressions", "head", "30° of yaw", "15° of pitch", "20° beyond any yaw"]
    return "### The synthetic actor, exact poses, whole frame\n\n" + _table(titles, rows) if rows else ""


def _origin(records: list[Record]) -> str:
    """One line with the days, machines, sizes and commits of the records."""

    def values(key: str) -> str:
        return ", ".join(sorted({str(r[key]) for r in records}))

    days = sorted({r["time"][:10] for r in records})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    where = f"{values('machine')} ({values('backend')} backend)"
    return f"Measured {span} on {where}, at {values('size')} px, commit {values('commit')}.\n"


def _clips(records: list[Record]) -> list[str]:
    return sorted({r["clip"] for r in records}, key=lambda clip: (clip == "synthetic", len(clip), clip))


def _db(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _part(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _difference(value: float | None, base: float | None) -> str:
    return NONE if value is None or base is None else f"{value - base:+.2f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run what is wanted, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="tracked folders, or the word synthetic")
    parser.add_argument("--seconds", type=float, default=15.0, help="training time of each run")
    parser.add_argument("--size", type=int, default=512, help="side of the frames in pixels")
    parser.add_argument("--only", action="append", choices=SWITCHES, help="run only this switch; repeatable")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=Path("out/ablation.jsonl"), help="file of JSON lines")
    parser.add_argument("--reports", type=Path, help="write a page for each run into this folder")
    parser.add_argument("--until", type=float, metavar="S", help="start no run that would end later than this")
    parser.add_argument("--commit", help="name of the source version where git cannot tell it")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="write the tables into this document")
    wanted = parser.parse_args(arguments)
    known = read_records(wanted.results)
    if wanted.sources:
        origin = {
            "commit": wanted.commit or source_commit() or "unknown",
            "machine": machine(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        wanted.results.parent.mkdir(parents=True, exist_ok=True)

        def keep(record: Record) -> None:
            with wanted.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

        for record in measure(wanted, list(known), origin, keep):
            known.append(record)
            summary = record.get("failed") or " ".join(
                f"{region} {_db(record[m])}" for region, m in zip(REGIONS, PSNR, strict=True)
            )
            print(f"{record['clip']:10s} {record['switch']:16s} {summary}  ({record['wall_seconds']} s)", flush=True)
    if wanted.write:
        write_between(wanted.write, tables(known), BEGIN, END)
    if any("failed" in record for record in known[-1:]):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ablate: {error}")
