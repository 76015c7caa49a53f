"""Run a scripted call of two subjects with pauses and changes of light, and measure the avatars that it learns.

    python tools/scripted_call.py FIRST SECOND --seconds 480 --json call.json --page call.html

FIRST and SECOND are tracked folders, or both are videos, which the live tracker then tracks.  The script: FIRST is
before the camera and leaves, SECOND comes and leaves, FIRST returns, and the light changes.  Exit status 1 if frames
of one subject were learned by the other's avatar, or if a thread of the daemon was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.config import load_config
from telepresence.measure.offline import scoring
from telepresence.measure.rehearsal.measurement_plan import NEXT_S
from telepresence.measure.rehearsal.rehearsed_call import RehearsedCall
from telepresence.measure.rehearsal.summary import print_summary
from telepresence.measure.report.charts import Curve, chart
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.scratch_folder import system_scratch_folder
from telepresence.sources import SourceIdentity
from telepresence.sources.playback_clock import PlaybackClock
from telepresence.sources.tracked_folder import TrackedSource
from telepresence.sources.video_file import VideoFrames

PAUSE_S: Final = 4.0
"""Shortest pause in seconds: long enough for the daemon to count the face as lost."""

BIN_S: Final = 5.0
"""Seconds of the call that one point of the curve of frame intervals summarises."""

TEMPLATE: Final = "scripted_call.html"
"""Jinja2 template of the page, beside this file."""


@dataclass(frozen=True)
class Scene:
    """Part of a script: a subject before the camera for some time.

    Attributes:
        who: number of the subject, 0 or 1; None is an empty chair.
        seconds: duration.
        gamma: exponent that is applied to the pixel values in [0, 1], which imitates other light.
    """

    who: int | None
    seconds: float
    gamma: float = 1.0


SCRIPT: Final = (
    Scene(0, 120.0),
    Scene(None, 8.0),
    Scene(1, 60.0),
    Scene(None, 8.0),
    Scene(0, 84.0),
    Scene(0, 60.0, gamma=1.6),
    Scene(0, 40.0, gamma=0.7),
    Scene(0, 100.0),
)
"""Scenes of the whole call."""


def shortened(script: Sequence[Scene], seconds: float) -> list[Scene]:
    """The script scaled to ``seconds``; pauses last at least `PAUSE_S`.  UserError if there is no time for scenes."""
    pauses = [max(PAUSE_S, seconds / 60.0) for scene in script if scene.who is None]
    others = sum(scene.seconds for scene in script if scene.who is not None)
    scale = (seconds - sum(pauses)) / others
    if scale <= 0.0:
        raise UserError(f"{seconds:g} s are too few for {len(script)} scenes: give more --seconds")
    return [replace(s, seconds=pauses[0] if s.who is None else s.seconds * scale) for s in script]


class SubjectClip(Protocol):
    """Recording of one subject, played by its frame numbers at ``fps`` frames a second."""

    fps: float

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Frame ``number`` of an endless playback, with that capture time."""
        ...


class VideoClip:
    """A video file played in a loop, at ``side`` x ``side`` pixels; frame numbers must not decrease."""

    def __init__(self, path: Path, side: int = 480) -> None:
        self._path, self._side = path, side
        self._frames = VideoFrames(path)
        self.fps = self._frames.fps
        self._next = 0

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Frame ``number`` of the playback, or the next one in the file if that has been passed."""
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
    """A `Source` that plays a script with one clip for each subject."""

    def __init__(self, clips: Sequence[SubjectClip], script: Sequence[Scene]) -> None:
        self.name, self.fps = "the script", clips[0].fps
        self._clips, self._script = clips, script
        self._clock = PlaybackClock(self.fps)
        self._empty: Bytes | None = None

    def read(self, timeout: float) -> CameraFrame | None:
        """The frame that is due now, after a wait of at most ``timeout`` seconds; None if none is due by then."""
        due = self._clock.wait(timeout)
        return self.frame(*due) if due is not None else None

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Frame ``number`` of the script, with that capture time."""
        index, since = self.scene(number)
        scene = self._script[index]
        if scene.who is None:
            return CameraFrame(number, t_capture_ns, self._empty_chair())
        clip = self._clips[scene.who]
        before = sum(s.seconds for s in self._script[:index] if s.who == scene.who)
        frame = clip.frame(round((before + since) * clip.fps), t_capture_ns)
        rgb = frame.rgb if scene.gamma == 1.0 else _gamma_table(scene.gamma)[frame.rgb]
        return CameraFrame(number, t_capture_ns, rgb, frame.truth)

    def scene(self, number: int) -> tuple[int, float]:
        """Index of the scene that frame ``number`` belongs to, and seconds into it; the last scene never ends."""
        left = number / self.fps
        for index, scene in enumerate(self._script[:-1]):
            if left < scene.seconds:
                return index, left
            left -= scene.seconds
        return len(self._script) - 1, left

    def subject(self, number: int) -> int | None:
        """Number of the subject in frame ``number``; None for the empty chair."""
        return self._script[self.scene(number)[0]].who

    def close(self) -> None:
        """Part of `Source`; there is nothing to release."""

    def _empty_chair(self) -> Bytes:
        if self._empty is None:
            self._empty = np.full_like(self._clips[0].frame(0, 0).rgb, 128)
        return self._empty


class GroundTruthCamera(ScriptedCamera):
    """A scripted camera of tracked folders: its frames carry the tracked state, so that no tracker is needed.

    ``identity`` is that of the first subject.
    """

    def __init__(self, clips: Sequence[TrackedSource], script: Sequence[Scene]) -> None:
        super().__init__(clips, script)
        self.identity: SourceIdentity = clips[script[0].who or 0].identity


def _gamma_table(exponent: float) -> Bytes:
    """Lookup table (256,) uint8 that applies a gamma to pixel values."""
    return np.round(255.0 * (np.arange(256) / 255.0) ** exponent).astype(np.uint8)


def open_camera(paths: Sequence[Path], script: Sequence[Scene]) -> ScriptedCamera:
    """Open tracked folders or videos, one for each subject.  UserError for a mixture, and for other files."""
    if all(path.is_dir() for path in paths):
        return GroundTruthCamera([TrackedSource(path) for path in paths], script)
    if any(path.is_dir() for path in paths):
        raise UserError("give two tracked folders or two videos, not one of each")
    return ScriptedCamera([VideoClip(path) for path in paths], script)


def replay_frame_ids(trainer: Any) -> Iterator[int]:
    """Frame ids of the observations in a trainer's replay."""
    yield from trainer.replay.frame_ids


def avatar_figures(call: RehearsedCall, camera: ScriptedCamera) -> list[dict[str, Any]]:
    """For every avatar of the call: its subject, and the number of frames of each subject in its replay.

    An avatar belongs to the subject of most of its frames.  Observations of other subjects are removed from the
    record of the call, so that they do not count in its figures.
    """
    record = call.record
    learners = {id(item.learner): item.learner for item in record.snapshots}
    learners |= {id(seen.learner): seen.learner for seen in record.observations if seen.learner is not None}
    found, owner = [], {}
    for key, learner in learners.items():
        counts = Counter(camera.subject(frame) for frame in replay_frame_ids(learner.trainer))
        subject = counts.most_common(1)[0][0] if counts else None
        owner[key] = subject
        found.append(
            {
                "avatar": str(learner.path.name),
                "person": subject,
                "pictures_of": {str(who): count for who, count in counts.items()},
                "strangers": sum(count for who, count in counts.items() if who != subject),
                "steps": learner.trainer.steps,
            }
        )
    record.observations = [
        s for s in record.observations if camera.subject(s.observation.frame_id) == owner.get(id(s.learner))
    ]
    return found


def interval_curve(call: RehearsedCall) -> list[dict[str, float]]:
    """Median, p99 and maximum of the milliseconds between frames handed to the encoder, every `BIN_S` seconds."""
    times = np.asarray(call.sink.times) - (call.record.began or 0.0)
    gaps = 1000.0 * np.diff(times)
    curve = []
    for start in np.arange(0.0, times[-1] if len(times) else 0.0, BIN_S):
        some = gaps[(times[1:] >= start) & (times[1:] < start + BIN_S)]
        if len(some):
            p50, p99 = np.percentile(some, (50.0, 99.0))
            curve.append({"seconds": start + BIN_S / 2, "p50": p50, "p99": p99, "max": some.max()})
    return curve


def scripted_call(paths: Sequence[Path], seconds: float, config: Any, models: Path | None) -> dict[str, Any]:
    """Run the call and return its figures; ``broken`` lists what makes it fail."""
    script = shortened(SCRIPT, seconds)
    camera = open_camera(paths, script)
    with system_scratch_folder() as folder:
        call = RehearsedCall("script", lambda: camera, seconds, config, folder / "avatar", None, models)
        call.run()
        avatars = avatar_figures(call, camera)
        figures = call.figures(clip_s=0.0)
        figures["avatars"] = avatars
        figures["interval_curve"] = interval_curve(call)
    starts = np.cumsum([0.0, *(scene.seconds for scene in script)])
    figures["scenes"] = [
        {"from": start, "who": paths[s.who].name if s.who is not None else None, "seconds": s.seconds, "gamma": s.gamma}
        for start, s in zip(starts, script, strict=False)
    ]
    broken = [f"{a['strangers']} frames of others were learned as {a['avatar']}" for a in avatars if a["strangers"]]
    broken += [f"the thread {name} was lost" for name in figures["resources"]["lost_threads"]]
    broken += [figures["failure"]] if figures["failure"] else []
    return scoring.without_nan({**figures, "broken": broken})


def page(figures: dict[str, Any]) -> str:
    """HTML page with the scenes, the avatars and the curves of the call, without links to other files."""
    changes = (figures["publish_change"] or {}).get("each", [])
    charts = (
        ("PSNR on the next 2 s, not yet learned, dB", figures["curve"], {"whole": "psnr_db", "head": "head_psnr_db"}),
        (
            "Reported by the daemon: PSNR of the head on recent held-back frames, dB",
            figures["held_back"],
            {"avatar": "psnr_db", "mesh": "mesh_psnr_db"},
        ),
        (
            "Milliseconds between frames handed to the encoder",
            figures["interval_curve"],
            {"p50": "p50", "p99": "p99", "max": "max"},
        ),
        (
            "Change of the frame when a snapshot is published, relative to the usual change",
            [{"seconds": at, "ratio": ratio} for at, ratio in changes],
            {"ratio": "ratio"},
        ),
        ("Memory, MB", figures["resources"]["curve"], {"host": "host_mb", "device": "device_mb"}),
    )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn = [(title, _chart(points, names)) for title, points, names in charts]
    return templates.get_template(TEMPLATE).render(figures=figures, charts=drawn)


def _chart(points: list[dict[str, Any]], names: dict[str, str]) -> str:
    """SVG with a curve for each name, which is mapped to the key of its values in ``points``."""
    curves = [Curve(name, [(p["seconds"], p.get(key)) for p in points]) for name, key in names.items()]
    drawn = chart(curves, "seconds of the call", "")
    for name, css in zip(names, "abc", strict=False):  # the chart uses the names of its curves as CSS classes
        drawn = drawn.replace(f'class="line {name}"', f'class="line {css}"')
        drawn = drawn.replace(f'class="label {name}"', f'class="label {css}"')
    return drawn


def main() -> None:
    """Parse the arguments, run the call, print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="tracked folder or video of the first subject")
    parser.add_argument("second", type=Path, help="the same of the second subject")
    parser.add_argument("--seconds", type=float, default=sum(scene.seconds for scene in SCRIPT) - NEXT_S)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--config", help="TOML file or preset")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--models", type=Path, default=os.environ.get("TELEPRESENCE_MODELS"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", type=Path, help="write a page with curves to this file")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.changes, arguments.device)
        figures = scripted_call((arguments.first, arguments.second), arguments.seconds, config, arguments.models)
    except UserError as error:
        sys.exit(str(error))
    print_summary(figures)
    for avatar in figures["avatars"]:
        print(f"avatar {avatar['avatar']}: of subject {avatar['person']}, frames of {avatar['pictures_of']}")
    for text in figures["broken"]:
        print(f"BROKEN: {text}")
    for path, text in ((arguments.json, json.dumps(figures, indent=2) + "\n"), (arguments.page, page(figures))):
        if path is not None:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if figures["broken"] else 0)


if __name__ == "__main__":
    main()
