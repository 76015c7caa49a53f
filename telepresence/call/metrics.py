"""The numbers of `/status` as Prometheus' metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from telepresence.call.session import State
from telepresence.learning.budget import Mode

if TYPE_CHECKING:
    from prometheus_client.core import Metric

NUMBERS: Final = {
    "stream_fps": ("fps", "Pictures a second that leave"),
    "stream_kilobits_per_second": ("stream.kbps", "Rate of what is encoded, once for all viewers"),
    "stream_keyframes": ("stream.keyframes", "Keyframes so far"),
    "avatar_fps": ("avatar_fps", "New avatar pictures a second"),
    "camera_fps": ("camera_fps", "Pictures a second from the camera"),
    "tracked_fps": ("tracked_fps", "Pictures a second that are tracked"),
    "viewers": ("viewers", "Peers that are watching"),
    "psnr_db": ("psnr_db", "Likeness of the avatar to held-back recent pictures"),
    "mesh_psnr_db": ("mesh_psnr_db", "Likeness of the coloured mesh to them"),
    "render_pixels": ("render_px", "Side at which the avatar is rendered"),
    "tracking_health": ("tracking.health", "Part of the newest pictures in which a face was tracked"),
    "training_steps": ("steps", "Training steps so far"),
    "training_steps_per_second": ("steps_per_second", "Training steps a second"),
    "training_samples_per_second": ("training.samples_per_second", "Samples of the field a second"),
    "snapshot_age_seconds": ("training.snapshot_age_s", "Since the shown weights were published"),
    "replay_bytes": ("replay.bytes", "Memory of the pictures that are learned from"),
    "gate_taken": ("gate.taken", "Pictures that were worth learning from"),
    "uptime_seconds": ("seconds", "Since the start"),
}
"""Metric: where in `/status` its number is, and what it means."""

FAMILIES: Final = {
    "snapshots": ("training.snapshots", "outcome", "Candidates for the shown weights by what became of them"),
    "replay_pictures": ("replay.pictures", "kind", "Pictures that are learned from"),
    "gate_refused": ("gate.refused", "reason", "Pictures that were not worth learning from"),
    "dropped": ("drops", "what", "What was overwritten before it was read, refused or failed"),
    "memory_megabytes": ("memory", "kind", "Memory in use, 10^6 bytes"),
}
"""Metric: where in `/status` its numbers are, by which label they are told apart, and what it means."""

STAGES: Final = {
    "stage_up": ("state", "1 if the stage runs"),
    "stage_silent_seconds": ("silent_s", "Since the stage's last sign of life"),
    "stage_restarts": ("restarts", "Restarts of the stage so far"),
}


class StatusCollector:
    """Tells Prometheus' client what ``read`` says of the daemon; what is not known yet is left out."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing: the status is not read while the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
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
        yield _state("session", status.get("state"), [str(state) for state in State])
        yield _state("training", _at(status, "training.state"), [str(mode) for mode in Mode])


def _state(name: str, current: object, states: list[str]) -> Metric:
    from prometheus_client.core import StateSetMetricFamily

    return StateSetMetricFamily(f"telepresence_{name}", f"State: {name}", {state: state == current for state in states})


def _at(status: Mapping[str, Any], path: str) -> Any:
    value: Any = status
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
