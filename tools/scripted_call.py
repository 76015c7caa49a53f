"""A call of two people, with pauses and changes of light, and what became of the avatar: figures and curves.

    python tools/scripted_call.py FIRST SECOND --seconds 480 --json call.json --page call.html

FIRST and SECOND are tracked folders, or both are videos, which the live tracker then tracks.  FIRST sits before the
camera, leaves, SECOND comes, leaves, FIRST is back, and the light changes.  Leaves with 1 if pictures of one person
were learned as the other, or a thread was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.commands.rehearse import Call, show
from telepresence.config import load_config
from telepresence.measure.offline import scoring
from telepresence.measure.rehearsal.plan import NEXT_S
from telepresence.measure.report.charts import Line, chart
from telepresence.runtime.frames import CameraFrame
from telepresence.sources import Identity
from telepresence.sources.live import LivePace
from telepresence.sources.tracked import TrackedSource
from telepresence.sources.video import VideoFrames

PAUSE_S = 4.0  # at least: long enough for a face to count as lost
BIN_S = 5.0  # of the curve of intervals


@dataclass(frozen=True)
class Scene:
    """``who`` (0, 1; None: an empty chair) is before the camera for ``seconds``, pictures raised to ``gamma``."""

    who: int | None
    seconds: float
    gamma: float = 1.0


SCRIPT = (
    Scene(0, 120.0),
    Scene(None, 8.0),
    Scene(1, 60.0),
    Scene(None, 8.0),
    Scene(0, 84.0),
    Scene(0, 60.0, gamma=1.6),
    Scene(0, 40.0, gamma=0.7),
    Scene(0, 100.0),
)


def shortened(script: Sequence[Scene], seconds: float) -> list[Scene]:
    """The script played in ``seconds``; pauses stay long enough to be noticed."""
    pauses = [max(PAUSE_S, seconds / 60.0) for scene in script if scene.who is None]
    others = sum(scene.seconds for scene in script if scene.who is not None)
    scale = (seconds - sum(pauses)) / others
    if scale <= 0.0:
        raise UserError(f"{seconds:g} s are too few for {len(script)} scenes")
    return [replace(s, seconds=pauses[0] if s.who is None else s.seconds * scale) for s in script]


class Clip(Protocol):
    """Somebody who can be before the camera."""

    fps: float

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame: ...


class VideoClip:
    """A video, played on from where it was left, again and again, at ``side`` x ``side`` pixels."""

    def __init__(self, path: Path, side: int = 480) -> None:
        self._path, self._side = path, side
        self._frames = VideoFrames(path)
        self.fps = self._frames.fps
        self._next = 0

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Picture ``number`` of the playing, or the next one that is left if that has passed."""
        from PIL import Image

        while True:
            item = self._frames.advance()
            if item is None:
                self._frames.close()
                self._frames = VideoFrames(self._path)
                continue
            self._next += 1
            if self._next > number:
                break
        rgb = self._frames.rgb(item[0])
        picture = Image.fromarray(rgb).resize((self._side, self._side), Image.Resampling.BILINEAR)
        return CameraFrame(number, t_capture_ns, np.asarray(picture))


class ScriptedCamera:
    """A `Source` that plays a script.  ``identity`` is that of whoever comes first; videos have none."""

    def __init__(self, clips: Sequence[Clip], script: Sequence[Scene]) -> None:
        self.name, self.fps = "the script", clips[0].fps
        self._clips, self._script = clips, script
        self._pace = LivePace(self.fps)
        self._played = [0.0 for _ in clips]
        self._empty: Bytes | None = None

    def read(self, timeout: float) -> CameraFrame | None:
        due = self._pace.wait(timeout)
        return self.frame(*due) if due is not None else None

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Picture ``number`` of the script, whose number it keeps."""
        index, since = self.scene(number)
        scene = self._script[index]
        if scene.who is None:
            return CameraFrame(number, t_capture_ns, self._chair())
        clip = self._clips[scene.who]
        before = sum(s.seconds for s in self._script[:index] if s.who == scene.who)
        frame = clip.frame(round((before + since) * clip.fps), t_capture_ns)
        rgb = frame.rgb if scene.gamma == 1.0 else _gamma(scene.gamma)[frame.rgb]
        return CameraFrame(number, t_capture_ns, rgb, frame.truth)

    def scene(self, number: int) -> tuple[int, float]:
        """Which scene picture ``number`` belongs to, and how many seconds into it; the last one never ends."""
        left = number / self.fps
        for index, scene in enumerate(self._script[:-1]):
            if left < scene.seconds:
                return index, left
            left -= scene.seconds
        return len(self._script) - 1, left

    def who(self, number: int) -> int | None:
        """Who is in picture ``number``."""
        return self._script[self.scene(number)[0]].who

    def close(self) -> None:
        """Nothing is held that would have to be released."""

    def _chair(self) -> Bytes:
        if self._empty is None:
            self._empty = np.full_like(self._clips[0].frame(0, 0).rgb, 128)
        return self._empty


class InformedCamera(ScriptedCamera):
    """The same with tracked folders: pictures know who is in them, so that nobody needs to track them."""

    def __init__(self, clips: Sequence[TrackedSource], script: Sequence[Scene]) -> None:
        super().__init__(clips, script)
        self.identity: Identity = clips[script[0].who or 0].identity


def _gamma(exponent: float) -> Bytes:
    """A table (256,) for pictures."""
    return np.round(255.0 * (np.arange(256) / 255.0) ** exponent).astype(np.uint8)


def open_camera(paths: Sequence[Path], script: Sequence[Scene]) -> ScriptedCamera:
    """Tracked folders or videos.  Raises UserError for a mixture, and for what is neither."""
    if all(path.is_dir() for path in paths):
        return InformedCamera([TrackedSource(path) for path in paths], script)
    if any(path.is_dir() for path in paths):
        raise UserError("give two tracked folders or two videos, not one of each")
    return ScriptedCamera([VideoClip(path) for path in paths], script)


def learned_pictures(trainer: Any) -> Iterator[int]:
    """Frame ids of the pictures that are in a trainer's replay."""
    replay = trainer.replay
    if hasattr(replay, "memories") and isinstance(replay.memories, list):
        yield from (memory.frame_id for memory in replay.memories)
    else:
        yield from (replay.frame_ids[slot] for slot in replay.order)


def persons(call: Call, camera: ScriptedCamera) -> list[dict[str, Any]]:
    """Every avatar of the call: whose it is, and whose pictures it has learned from.

    Pictures that belong to somebody else than an avatar do not count in its figures, and are taken out of the record.
    """
    record = call.record
    learners = {id(item.learner): item.learner for item in record.published}
    learners |= {id(seen.learner): seen.learner for seen in record.seen if seen.learner is not None}
    found, owner = [], {}
    for key, learner in learners.items():
        shown = Counter(camera.who(frame) for frame in learned_pictures(learner.trainer))
        whose = shown.most_common(1)[0][0] if shown else None
        owner[key] = whose
        found.append(
            {
                "avatar": str(learner.path.name),
                "person": whose,
                "pictures_of": {str(who): count for who, count in shown.items()},
                "strangers": sum(count for who, count in shown.items() if who != whose),
                "steps": learner.trainer.steps,
            }
        )
    record.seen = [s for s in record.seen if camera.who(s.observation.frame_id) == owner.get(id(s.learner))]
    return found


def interval_curve(call: Call) -> list[dict[str, float]]:
    """Median, p99 and largest interval between pictures handed to the encoder, every `BIN_S`."""
    times = np.asarray(call.outlet.times) - (call.record.began or 0.0)
    gaps = 1000.0 * np.diff(times)
    curve = []
    for start in np.arange(0.0, times[-1] if len(times) else 0.0, BIN_S):
        some = gaps[(times[1:] >= start) & (times[1:] < start + BIN_S)]
        if len(some):
            p50, p99 = np.percentile(some, (50.0, 99.0))
            curve.append({"seconds": start + BIN_S / 2, "p50": p50, "p99": p99, "max": some.max()})
    return curve


def scripted_call(paths: Sequence[Path], seconds: float, config: Any, models: Path | None) -> dict[str, Any]:
    """Hold the call; its figures."""
    script = shortened(SCRIPT, seconds)
    camera = open_camera(paths, script)
    with tempfile.TemporaryDirectory(prefix="telepresence-") as folder:
        call = Call("script", lambda: camera, seconds, config, Path(folder) / "avatar", None, models)
        call.play()
        avatars = persons(call, camera)
        figures = call.figures(clip_s=0.0)
        figures["avatars"] = avatars
        figures["interval_curve"] = interval_curve(call)
    starts = np.cumsum([0.0, *(scene.seconds for scene in script)])
    figures["scenes"] = [
        {"from": start, "who": paths[s.who].name if s.who is not None else None, "seconds": s.seconds, "gamma": s.gamma}
        for start, s in zip(starts, script, strict=False)
    ]
    broken = [f"{a['strangers']} pictures of others were learned as {a['avatar']}" for a in avatars if a["strangers"]]
    broken += [f"the thread {name} was lost" for name in figures["resources"]["lost_threads"]]
    broken += [figures["failure"]] if figures["failure"] else []
    return scoring.without_nan({**figures, "broken": broken})


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;color:#222}
.chart{width:100%;height:auto}.grid{stroke:#e3e3e3}.tick,.title{font-size:11px;fill:#777}.label{font-size:11px}
polyline{fill:none;stroke-width:1.6}.line circle{stroke:none}td,th{padding:.15rem .9rem .15rem 0;text-align:left}
.a polyline{stroke:#1665b8}.a circle,.label.a{fill:#1665b8}.b polyline{stroke:#c2571a}.b circle,.label.b{fill:#c2571a}
.c polyline{stroke:#2a8a4a}.c circle,.label.c{fill:#2a8a4a}"""


def page(figures: dict[str, Any]) -> str:
    """Curves of the call, as one HTML file that needs nothing else."""

    def lines(points: list[dict[str, Any]], **names: str) -> str:
        known = [Line(name, [(p["seconds"], p.get(key)) for p in points]) for name, key in names.items()]
        drawn = chart(known, "seconds of the call", "")
        for name, css in zip(names, "abc", strict=False):  # the chart's classes are the names of its lines
            drawn = drawn.replace(f'class="line {name}"', f'class="line {css}"')
            drawn = drawn.replace(f'class="label {name}"', f'class="label {css}"')
        return drawn

    scenes = "".join(
        f"<tr><td>{s['from']:.0f} s</td><td>{escape(s['who'] or 'nobody')}</td><td>{s['seconds']:.0f} s</td>"
        f"<td>{s['gamma']:g}</td></tr>"
        for s in figures["scenes"]
    )
    avatars = "".join(
        f"<tr><td>{escape(a['avatar'])}</td><td>{a['person']}</td><td>{a['pictures_of']}</td><td>{a['steps']}</td></tr>"
        for a in figures["avatars"]
    )
    changes = (figures["publish_change"] or {}).get("each", [])
    parts = (
        f"<p>{escape(figures['device'])} · {figures['backend']} · {escape(str(figures['commit']))}</p>",
        "<h2>Scenes</h2><table><tr><th>from<th>who<th>for<th>gamma</tr>" + scenes + "</table>",
        "<h2>Avatars</h2><table><tr><th>avatar<th>whose<th>pictures of<th>steps</tr>" + avatars + "</table>",
        "<h2>PSNR on the next, not yet seen 2 s, dB</h2>"
        + lines(figures["curve"], whole="psnr_db", head="head_psnr_db"),
        "<h2>What the daemon said: held-back recent pictures, head, dB</h2>"
        + lines(figures["held_back"], avatar="psnr_db", mesh="mesh_psnr_db"),
        "<h2>Milliseconds between pictures handed to the encoder</h2>"
        + lines(figures["interval_curve"], p50="p50", p99="p99", max="max"),
        "<h2>Change in the picture at a publication, in parts of the usual change</h2>"
        + lines([{"seconds": at, "ratio": ratio} for at, ratio in changes], ratio="ratio"),
        "<h2>Memory, MB</h2>" + lines(figures["resources"]["curve"], host="host_mb", device="device_mb"),
        "".join(f"<p><b>{escape(text)}</b></p>" for text in figures["broken"]),
    )
    return f'<!doctype html><meta charset="utf-8"><title>A scripted call</title><style>{STYLE}</style>{"".join(parts)}'


def main() -> None:
    """Parse, run, print, write, leave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--seconds", type=float, default=sum(scene.seconds for scene in SCRIPT) - NEXT_S)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--config")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--models", type=Path, default=os.environ.get("TELEPRESENCE_MODELS"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.changes, arguments.device)
        figures = scripted_call((arguments.first, arguments.second), arguments.seconds, config, arguments.models)
    except UserError as error:
        sys.exit(str(error))
    show(figures)
    for avatar in figures["avatars"]:
        print(f"avatar {avatar['avatar']}: of person {avatar['person']}, pictures of {avatar['pictures_of']}")
    for text in figures["broken"]:
        print(f"BROKEN: {text}")
    for path, text in ((arguments.json, json.dumps(figures, indent=2) + "\n"), (arguments.page, page(figures))):
        if path is not None:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if figures["broken"] else 0)


if __name__ == "__main__":
    main()
