"""Stages of the daemon: one class for each worker thread, which calls the method ``round`` repeatedly."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from telepresence.call.session import AWAY, Session, SessionState
from telepresence.call.status import card_text
from telepresence.display.display import Scene
from telepresence.learning.budget import LearningMode
from telepresence.runtime.clock import LoopTimer, now_ns
from telepresence.runtime.ownership import owned_by
from telepresence.runtime.scheduling import training_pause

if TYPE_CHECKING:
    from telepresence.call.autosave import AvatarAutosave
    from telepresence.call.camera_manager import CameraManager
    from telepresence.call.camera_session import CameraSession
    from telepresence.call.driver_selection import DriverSelector
    from telepresence.call.learners import LearnerManager
    from telepresence.call.session_controller import SessionController
    from telepresence.call.sinks import FrameSinks
    from telepresence.config import Config
    from telepresence.display.display import Display
    from telepresence.learning.learner import Learner
    from telepresence.learning.memory_budget import ReplayLimiter
    from telepresence.runtime.frames import CameraFrame, TrackedFrame, TrackedState
    from telepresence.runtime.mailbox import Mailbox
    from telepresence.runtime.supervision import Supervisor
    from telepresence.runtime.telemetry import Telemetry

MOVE_S: Final = 0.1
"""Maximum time in seconds that rendering waits for a new head state, so that a lost face still eases to neutral."""
UNSEEN_S: Final = 1.0
"""Seconds between two frames while no sink uses them, so that a new viewer starts with a recent frame."""
READ_S: Final = 0.5
"""Timeout in seconds of one read from a camera or a mailbox."""
TICK_S: Final = 0.1
"""Seconds between two rounds of supervision, and between two rounds of training while learning rests."""
TURN_S: Final = 0.25
"""Maximum time in seconds that tracking waits for rendering to end, where the two alternate on few CPU cores."""
NO_WORK_S: Final = 0.05
"""Seconds that training waits after a round in which the learner had nothing to do."""


@dataclass(frozen=True)
class Signals:
    """Thread-safe events between the stages, and the mailbox from capture to tracking.

    Attributes:
        stopping: set when the call is to end.
        new_state: set when there is a new head state to render.
        tracker_waits: set while the tracker waits for a frame, so that capture reads a new one.
        not_rendering: set while no frame is being rendered.
        frames: newest camera frame, with the session it belongs to.
    """

    stopping: threading.Event
    new_state: threading.Event
    tracker_waits: threading.Event
    not_rendering: threading.Event
    frames: Mailbox[tuple[CameraSession, CameraFrame]]


@owned_by("capture")
class CaptureStage:
    """Capture stage: reads a frame from the current camera whenever the tracker waits for one."""

    def __init__(self, config: Config, cameras: CameraManager, telemetry: Telemetry, signals: Signals) -> None:
        self._cameras, self._telemetry, self._signals = cameras, telemetry, signals
        self._timer = LoopTimer(config.run.render_fps)

    def round(self) -> None:
        """Read one frame, at most ``run.render_fps`` a second; frames that would not be rendered are not read."""
        signals = self._signals
        self._timer.wait(signals.stopping)
        signals.tracker_waits.wait(READ_S)  # a frame that was read early would be old when it is tracked
        camera = self._cameras.current
        frame = camera.reader.read(READ_S) if camera is not None else None
        if camera is not None and frame is not None:
            self._telemetry.captured.tick()
            signals.tracker_waits.clear()
            signals.frames.put((camera, frame))


@owned_by("track")
class TrackStage:
    """Tracking stage: tracks camera frames, and passes head states to the drivers and observations to the learner."""

    def __init__(
        self,
        cameras: CameraManager,
        drivers: DriverSelector,
        sinks: FrameSinks,
        telemetry: Telemetry,
        signals: Signals,
        *,
        take_turns: bool,
        on_tracked: Callable[[TrackedFrame, Learner | None], None] | None = None,
    ) -> None:
        """With ``take_turns`` tracking waits while a frame is rendered.  ``on_tracked`` is called with each tracked
        frame and the learner of its subject, if any."""
        self._cameras, self._drivers, self._sinks = cameras, drivers, sinks
        self._telemetry, self._signals = telemetry, signals
        self._take_turns, self._on_tracked = take_turns, on_tracked

    def round(self) -> None:
        """Track one frame of the current camera, if one arrives within `READ_S`."""
        signals = self._signals
        if self._take_turns:
            signals.not_rendering.wait(TURN_S)
        signals.tracker_waits.set()
        item = signals.frames.get(READ_S)
        if item is None or item[0] is not self._cameras.current:
            return
        camera, frame = item
        began = time.perf_counter()
        tracked = camera.tracking.track(frame, lambda state: self._on_state(camera, state))
        self._telemetry.stage("track", time.perf_counter() - began)
        self._telemetry.tracked.tick()
        if not frame.landmarks_only:
            self._sinks.push_camera_frame(tracked)
        if tracked.tracked_state is not None:
            self._telemetry.found.tick()
        camera.tracking.update(tracked, time.monotonic())
        self._announce()
        if self._on_tracked is not None:
            self._on_tracked(tracked, camera.learner)

    def renew_tracker(self) -> None:
        """Replace the tracker of the current camera, after it has raised an error."""
        camera = self._cameras.current
        if camera is not None:
            camera.tracking.renew_tracker()

    def _on_state(self, camera: CameraSession, tracked: TrackedState) -> None:
        """Let the head state be rendered; the matte of its frame is computed after that."""
        learner = camera.learner
        shape = learner.avatar.model.shape if learner is not None else camera.tracker.shape
        self._drivers.on_tracked_state(tracked.state, shape)
        self._announce()

    def _announce(self) -> None:
        if not self._drivers.external:
            self._signals.new_state.set()


@owned_by("render")
class RenderStage:
    """Rendering stage: renders the newest head state, and passes the frame to the sinks."""

    def __init__(
        self,
        config: Config,
        cameras: CameraManager,
        drivers: DriverSelector,
        display: Display,
        sinks: FrameSinks,
        telemetry: Telemetry,
        signals: Signals,
    ) -> None:
        self._cameras, self._drivers, self._display, self._sinks = cameras, drivers, display, sinks
        self._telemetry, self._signals = telemetry, signals
        self._show_camera = config.run.show_camera
        self._timer = LoopTimer(config.run.render_fps, early=1.0)
        self._rendered_at = time.monotonic()

    def round(self) -> None:
        """Render one frame if it would differ from the last; at most one per `UNSEEN_S` while no sink uses frames."""
        signals, telemetry = self._signals, self._telemetry
        self._drivers.wait(signals.new_state, MOVE_S, self._timer, signals.stopping)
        now = time.monotonic()
        if not self._sinks.watched and now - self._rendered_at < UNSEEN_S:
            return
        self._rendered_at = now
        began = time.perf_counter()
        camera = self._cameras.current
        signals.not_rendering.clear()
        try:
            frame = self._display.render(self._scene(camera)) if camera is not None else None
        finally:
            signals.not_rendering.set()
        if frame is None:
            self._timer.skip()
        else:
            telemetry.stage("render", time.perf_counter() - began)
            telemetry.shown.tick()
            if frame.is_avatar:
                telemetry.avatar.tick()
            self._sinks.push_frame(frame)
            telemetry.latency((now_ns() - frame.t_capture_ns) / 1e9)
        if camera is not None and camera.learner is not None:
            self._display.refresh(camera.learner)

    def _scene(self, camera: CameraSession) -> Scene:
        """Everything that the frame rendered now depends on."""
        subject, tracked = camera.subject, camera.tracking.newest
        session, learner = subject.session, subject.learner
        learned = learner.avatar.camera if learner is not None else None
        state, view = self._drivers.head_state(subject.tracking.state, learned, subject)
        away = session.state in AWAY and not self._drivers.idles
        absent = time.monotonic() - session.last_face if away and session.last_face else 0.0
        show_camera = self._show_camera and tracked is not None and not tracked.landmarks_only
        raw = tracked.crop_rgb if show_camera and tracked is not None else None
        mesh = learner.mesh if learner is not None and learner.mesh is not None else subject.mesh
        title, hint = card_text(camera)
        return Scene(state, view, learner, _is_good(session, learner), absent, raw, title, hint, mesh)


def _is_good(session: Session, learner: Learner | None) -> bool:
    """Whether to display the avatar: it is live, or comes from an earlier call and was not measured yet."""
    return session.live or (learner is not None and learner.score is None and learner.loaded)


@owned_by("train")
class TrainStage:
    """Training stage: trains the avatar of the current subject, and saves it."""

    def __init__(
        self,
        cameras: CameraManager,
        learners: LearnerManager,
        autosave: AvatarAutosave,
        telemetry: Telemetry,
        signals: Signals,
        duty: float,
        limiter: ReplayLimiter,
    ) -> None:
        """``duty`` is the fraction of its thread's time that training takes; ``limiter`` enforces the memory budget."""
        self._cameras, self._learners, self._autosave = cameras, learners, autosave
        self._telemetry, self._signals, self._duty = telemetry, signals, duty
        self._limiter = limiter

    def round(self) -> None:
        """Do one training step and a save if one is due, or wait for a moment if there is nothing to do."""
        signals, telemetry = self._signals, self._telemetry
        camera = self._cameras.current
        self._limiter.update(camera.learner if camera is not None else None, time.monotonic())
        # An unsettled identity needs training rounds, too: the frames are compared with the avatar there.
        if camera is None or (camera.budget.mode is LearningMode.RESTING and camera.subject.verifier.confirmed):
            if camera is not None:
                self._autosave.update(camera)
            signals.stopping.wait(TICK_S)
            return
        if self._learners.colour_mesh(camera):
            signals.new_state.set()
            return
        began = time.perf_counter()
        learner = self._learners.current(camera)
        samples = learner.samples if learner is not None else 0
        if learner is None or not learner.run_once():
            signals.stopping.wait(NO_WORK_S)
            return
        spent = time.perf_counter() - began
        telemetry.stage("train", spent)
        telemetry.trained.tick()
        telemetry.samples.tick(count=learner.samples - samples)
        self._autosave.update(camera)
        signals.stopping.wait(training_pause(spent, self._duty))


@owned_by("supervise")
class SuperviseStage:
    """Supervision stage: switches cameras, advances the session, and monitors the other stages and the sinks."""

    def __init__(
        self,
        config: Config,
        cameras: CameraManager,
        controller: SessionController,
        supervisor: Supervisor,
        sinks: FrameSinks,
        telemetry: Telemetry,
        signals: Signals,
        *,
        status: Callable[[], Mapping[str, Any]],
        end_call: Callable[[str], None],
    ) -> None:
        """``status`` returns the status of the daemon, ``end_call`` ends the call because of an error."""
        self._cameras, self._controller, self._supervisor, self._sinks = cameras, controller, supervisor, sinks
        self._telemetry, self._signals, self._device = telemetry, signals, config.run.device
        self._status, self._end_call = status, end_call
        self._was_live = False

    def round(self) -> None:
        """Wait for `TICK_S`, then switch cameras, advance the session, measure memory and check for hanging stages."""
        if self._signals.stopping.wait(TICK_S):
            return
        now = time.monotonic()
        self._cameras.update(now, self._supervisor.rounds(("capture", "track", "render", "train")))
        camera = self._cameras.current
        if camera is not None:
            self._controller.advance(camera, self._supervisor.health(now)["train"], now)
            if camera.session.state is SessionState.LIVE and not self._was_live:
                self._was_live = True
                gc.freeze()  # objects made by calibration and compilation stay to the end, too
        self._telemetry.measure_memory(self._device, now)
        self._supervisor.watch(now)
        self._sinks.push_status(now, self._status)
        if (error := self._sinks.supervise(now)) is not None:
            self._end_call(error)
