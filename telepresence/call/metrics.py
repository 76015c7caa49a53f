"""Export of the numbers in `/status` as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from telepresence.call.session import SessionState
from telepresence.learning.budget import LearningMode

if TYPE_CHECKING:
    from prometheus_client.core import Metric

NUMBERS: Final = {
    "stream_fps": ("fps", "Frames sent per second"),
    "stream_kilobits_per_second": (
        "stream.kbps",
        "Encoded bit rate, in kilobits per second, counted once for all viewers",
    ),
    "stream_keyframes": ("stream.keyframes", "Keyframes encoded since the start"),
    "avatar_fps": ("avatar_fps", "New frames of the avatar rendered per second"),
    "camera_fps": ("camera_fps", "Frames read from the camera per second"),
    "tracked_fps": ("tracked_fps", "Camera frames tracked per second"),
    "viewers": ("viewers", "Connected viewers"),
    "psnr_db": ("psnr_db", "PSNR of the avatar on held-back recent frames, in dB"),
    "mesh_psnr_db": ("mesh_psnr_db", "PSNR of the coloured mesh on held-back recent frames, in dB"),
    "render_pixels": ("render_px", "Side in pixels at which the avatar is rendered"),
    "tracking_health": ("tracking.health", "Fraction of the newest camera frames in which a face was tracked"),
    "training_steps": ("steps", "Training steps of the avatar since it was created"),
    "training_steps_per_second": ("steps_per_second", "Training steps per second"),
    "training_samples_per_second": ("training.samples_per_second", "Field samples evaluated by training per second"),
    "snapshot_age_seconds": ("training.snapshot_age_s", "Seconds since the displayed weights were published"),
    "replay_bytes": ("replay.bytes", "Memory of the replay buffer, in bytes"),
    "frame_filter_accepted": ("frame_filter.accepted", "Frames accepted for learning"),
    "uptime_seconds": ("seconds", "Seconds since the start of the daemon"),
}
"""Name of each metric with one value: (path of the number in `/status`, help text)."""

FAMILIES: Final = {
    "snapshots": ("training.snapshots", "outcome", "Candidate snapshots of the weights, by outcome"),
    "replay_frames": ("replay.frames", "kind", "Frames in the replay buffer"),
    "frame_filter_refused": ("frame_filter.refused", "reason", "Frames refused for learning"),
    "dropped": ("drops", "what", "Values that were overwritten before they were read, or refused"),
    "memory_megabytes": ("memory", "kind", "Memory in use, and its budget, in 10^6 bytes"),
}
"""Name of each labelled metric: (path of the object of numbers in `/status`, label name, help text)."""

STAGES: Final = {
    "stage_up": ("state", "1 if the stage runs"),
    "stage_silent_seconds": ("silent_s", "Seconds since the stage last finished a round"),
    "stage_restarts": ("restarts", "Restarts of the stage since the start"),
}
"""Name of each metric with label ``stage``: (key in each stage of `/status`, help text)."""


class StatusCollector:
    """Prometheus collector that exports the `/status` object which ``read`` returns; unknown numbers are left out."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """An empty list, so that registering the collector does not read the status."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, from one new call of ``read``."""
        from prometheus_client.core import GaugeMetricFamily

        status = self._read()
        for name, (path, meaning) in NUMBERS.items():
            if isinstance(value := _at(status, path), int | float):
                yield GaugeMetricFamily(f"telepresence_{name}", meaning, value=value)
        for name, (path, label, meaning) in FAMILIES.items():
            family = GaugeMetricFamily(f"telepresence_{name}", meaning, labels=[label])
            for key, value in (_at(status, path) or {}).items():
                if isinstance(value, int | float):
                    family.add_metric([key], value)
            yield family
        for name, (key, meaning) in STAGES.items():
            family = GaugeMetricFamily(f"telepresence_{name}", meaning, labels=["stage"])
            for stage, health in (status.get("stages") or {}).items():
                value = health[key]
                family.add_metric([stage], float(value == "running") if key == "state" else value)
            yield family
        yield _state("session", status.get("state"), [str(state) for state in SessionState])
        yield _state("training", _at(status, "training.state"), [str(mode) for mode in LearningMode])


def _state(name: str, current: object, states: list[str]) -> Metric:
    from prometheus_client.core import StateSetMetricFamily

    return StateSetMetricFamily(
        f"telepresence_{name}", f"State of the {name}", {state: state == current for state in states}
    )


def _at(status: Mapping[str, Any], path: str) -> Any:
    value: Any = status
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
