"""Selection of the driver (source of head states): the tracker, a receiver of head states, or idle motion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.drivers.arbiter import DriverId, DriverMode, choose_driver
from telepresence.drivers.expression_transfer import ExpressionStats
from telepresence.drivers.idle_motion import IdleMotion
from telepresence.drivers.state_blend import blend_cameras, blend_states
from telepresence.runtime.clock import LoopTimer, now_ns
from telepresence.runtime.ownership import any_thread, called_by, owned_by

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.call.driver_receivers import DriverReceivers
    from telepresence.drivers.driver_settings import DriverSettings
    from telepresence.drivers.receiver import DrivenState
    from telepresence.runtime.frames import TrackedState
    from telepresence.runtime.telemetry import Telemetry

RELAX_S: Final = 1.5
"""Duration in seconds of the blend to the resting pose when no driver has a recent state."""
STEP_S: Final = 0.04
"""Seconds between frames while the face idles, or is blended from one driver to the next."""
LEAD: Final = 0.25
"""Age of a received state, as a fraction of the message interval, above which rendering waits for the next state."""


_SWITCHED_ON_BY: Final = {
    "zmq": "give --zmq ADDRESS",
    "subscription": "give --set drivers.subscribe=ADDRESS",
    "livelink": "give --driver livelink",
    "vmc": "give --driver vmc",
    "openseeface": "give --driver openseeface",
    "take": "give --driver take=take.npz",
}
"""What starts the receiver of each driver."""


@owned_by("render")
class DriverSelector:
    """Selects the driver (source of head states) of each frame, blends between drivers, and computes idle motion.

    Attributes:
        idles: whether a face without a driver gets idle motion (breathing and blinking).
    """

    def __init__(
        self,
        receivers: DriverReceivers,
        mode: str,
        settings: DriverSettings,
        head: HeadModel,
        *,
        idles: bool,
        telemetry: Telemetry,
        expression_stats: Callable[[], tuple[str, ExpressionStats] | None],
    ) -> None:
        """``mode`` is the value of ``--drive``.  UserError if it names a driver that ``receivers`` does not have.

        ``telemetry`` receives, as stage ``drive``, how long each rendered state waited since it arrived or since the
        previous frame was done, whichever is later.  ``expression_stats`` returns the avatar's fingerprint and
        expression statistics, or None while unknown.
        """
        self._receivers = receivers.receivers
        self._publish = receivers.publish
        if mode not in ("auto", "tracker", *self._receivers):
            raise UserError(f"--drive {mode} needs that driver, which is off: {_SWITCHED_ON_BY[mode]}")
        self._mode = cast(DriverMode, mode)
        self._settings, self._head, self.idles = settings, head, idles
        self._telemetry, self._expression_stats = telemetry, expression_stats
        self._seen_ns: int | None = None  # time of the newest tracked state
        self._counted: tuple[str, int] | None = None  # the message whose waiting time was counted last
        self._free_ns = 0  # time at which the previous frame was done
        self._last: tuple[HeadState, Camera | None] | None = None  # newest state returned, and its camera
        self._subject: object = None  # the subject of that state
        self._moving: DriverId = "tracker"  # the driver of that state
        self._from: tuple[HeadState, Camera | None] | None = None  # start of the blend to this driver
        self._since, self._fading = 0.0, False
        self._rest: tuple[HeadState, Camera | None, IdleMotion, float] | None = None

    # ---- any thread

    @property
    @any_thread
    def driver(self) -> DriverId:
        """The driver whose states are rendered now; while no driver has a recent state, that of the newest frame."""
        chosen = self._choose(now_ns())
        return chosen if chosen != "idle" else self._moving

    @property
    @any_thread
    def external(self) -> bool:
        """Whether `driver` is a receiver of head states, not the tracker or idle motion."""
        return self.driver in self._receivers

    @property
    @any_thread
    def receiving(self) -> bool:
        """Whether a receiver is selected now and its newest message is recent."""
        return self._choose(now_ns()) in self._receivers

    # ---- the tracking thread

    @called_by("track")
    def on_tracked_state(self, state: HeadState, shape: Float32 | None = None) -> None:
        """Note that a face is tracked now, and publish its state.  ``shape`` (S,) is the identity code if known."""
        self._seen_ns = now_ns()
        self._publish(state, shape)

    # ---- the render thread

    def wait(self, new_state: threading.Event, still_s: float, timer: LoopTimer, stop: threading.Event) -> None:
        """Wait until ``timer`` allows the next frame and there is a new state, or a step of idle motion or a blend.

        ``new_state`` is set with every new state and is cleared here; without one this returns after ``still_s``
        seconds.  If states arrive faster than frames and the newest is not recent when the frame is due, this waits
        for the next state.  ``stop`` ends the wait for ``timer``.
        """
        self._free_ns = now_ns()
        timer.wait(stop)
        receiver = self._receivers.get(self._moving)
        interval = receiver.interval() if receiver is not None else None
        age = receiver.age(now_ns()) if receiver is not None else None
        if interval is not None and age is not None and LEAD * interval < age < interval < timer.period:
            new_state.clear()
            new_state.wait(interval)
        else:
            new_state.wait(min(still_s, STEP_S) if self._fading or self._moving == "idle" else still_s)
        new_state.clear()

    def head_state(
        self, tracked: TrackedState | None, learned: Camera | None, subject: object = None
    ) -> tuple[HeadState | None, Camera | None]:
        """Head state to render now, and the camera to render it with; either is None while it is unknown.

        ``tracked`` is the newest tracked state of ``subject``, ``learned`` the camera that the avatar was trained with.
        A change of driver is blended over several frames; a change of subject is immediate.
        """
        now = now_ns()
        if subject is not self._subject:
            self._subject, self._last, self._rest = subject, None, None
        chosen = self._choose(now)
        if chosen == "idle" and not (self.idles and (self._last is not None or self._mode in self._receivers)):
            chosen = cast(DriverId, self._mode) if self._mode in self._receivers else "tracker"
        if chosen != self._moving:
            self._from, self._since = self._last, now * 1e-9
            self._moving, self._rest = chosen, None
        state, camera = self._driver_state(tracked, learned, now)
        if state is None:
            self._fading = False
            return None, camera
        weight = self._blend_weight(now)
        self._fading = self._from is not None and weight < 1.0
        if self._from is not None and self._fading:
            start, start_camera = self._from
            state = blend_states(start, state, weight).at(now)
            if start_camera is not None and camera is not None:
                camera = blend_cameras(start_camera, camera, weight)
        else:
            self._from = None
        self._last = (state, camera)
        return state, camera

    def _choose(self, now: int) -> DriverId:
        seen_s = (now - self._seen_ns) / 1e9 if self._seen_ns is not None else None
        return choose_driver(
            self._mode, {name: receiver.age(now) for name, receiver in self._receivers.items()}, seen_s
        )

    def _blend_weight(self, now: int) -> float:
        """Weight in [0, 1] of the current driver against the start of the blend, at ``now`` (ns)."""
        length = RELAX_S if self._moving == "idle" else self._settings.fade_s
        return smoothstep((now * 1e-9 - self._since) / length) if length > 0.0 else 1.0

    def _driver_state(
        self, tracked: TrackedState | None, learned: Camera | None, now: int
    ) -> tuple[HeadState | None, Camera | None]:
        """Newest state of the current driver, and the camera to render it with."""
        receiver = self._receivers.get(self._moving)
        if receiver is not None:
            driven = receiver.newest()
            if driven is None:
                return None, learned
            self._count_wait(self._moving, driven, now)
            return driven.state, learned if driven.transferred or tracked is None else tracked.camera
        if self._moving == "idle":
            return self._idle_state(learned, now)
        return (tracked.state, tracked.camera) if tracked is not None else (None, learned)

    def _count_wait(self, name: str, driven: DrivenState, now: int) -> None:
        if (name, driven.seq) != self._counted:
            self._counted = name, driven.seq
            self._telemetry.stage("drive", (now - max(driven.arrived_ns, self._free_ns)) / 1e9)

    def _idle_state(self, learned: Camera | None, now: int) -> tuple[HeadState | None, Camera | None]:
        """Idle motion around the avatar's neutral face, or around the last state while its statistics are unknown."""
        rest: tuple[HeadState, Camera | None]
        if self._rest is None:
            stats = self._expression_stats()
            if stats is not None and learned is not None:
                rest = _neutral(stats[1]), learned
            elif self._last is not None:
                rest = self._last
            else:
                return None, learned
            self._rest = *rest, IdleMotion(self._head.basis, self._head.expression_names), now * 1e-9
        neutral, camera, idle, since = self._rest
        return idle.state(neutral, now * 1e-9 - since).at(now), camera


def _neutral(stats: ExpressionStats) -> HeadState:
    """Neutral face at the mean head pose of ``stats``."""
    return HeadState(
        expression=stats.expression,
        jaw_pose=stats.jaw_pose,
        neck_pose=stats.neck_pose,
        eye_pose=stats.eye_pose,
        eyelids=stats.eyelids,
        rotation=axis_angle(stats.rotation).astype("float32"),
        translation=stats.translation,
    )
