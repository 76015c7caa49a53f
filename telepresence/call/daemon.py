"""The daemon: creates the parts of a call, connects them, and starts and stops their threads.

    capture -> frame mailbox -> track -> head state -----------> render -> frame sinks: MediaServer, preview, recorder
                                  \\-> learner (replay) -> train -> weight exchange -^
    receivers of head states: ZeroMQ, UDP bridges, a take --------------------------^

The work of each thread is in `telepresence.call.stages`.  The stage ``supervise`` switches cameras, advances the
session of the call, and reports stages that hang.  Threads exchange immutable values, through mailboxes.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.head import load_head
from telepresence.call.autosave import AvatarAutosave
from telepresence.call.call_options import CallOptions
from telepresence.call.camera_manager import CameraManager
from telepresence.call.controls import CallControls
from telepresence.call.driver_receivers import DriverReceivers, open_receivers
from telepresence.call.driver_selection import DriverSelector
from telepresence.call.learners import ExpressionStatsCache, LearnerManager
from telepresence.call.metrics import StatusCollector
from telepresence.call.session_controller import SessionController
from telepresence.call.sinks import FrameSinks, LocalFrameSink
from telepresence.call.stages import CaptureStage, RenderStage, Signals, SuperviseStage, TrackStage, TrainStage
from telepresence.call.status import Status, StatusInputs
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.cards import card
from telepresence.display.display import Display
from telepresence.learning.memory_budget import ReplayLimiter
from telepresence.outputs import PreviewWindow, Recorder, VirtualCamera
from telepresence.runtime.audio import AudioBus
from telepresence.runtime.clock import now_ns
from telepresence.runtime.frames import CameraFrame, OutputFrame, TrackedFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.scheduling import CpuShare, take_turns
from telepresence.runtime.supervision import Supervisor
from telepresence.runtime.telemetry import Telemetry
from telepresence.runtime.worker import limit_torch_threads
from telepresence.streaming import FrameSink, MediaServer

if TYPE_CHECKING:
    from telepresence.config import Config
    from telepresence.drivers.expression_transfer import ExpressionStats
    from telepresence.learning.learner import Learner
    from telepresence.sources import Source

log = logging.getLogger("telepresence")

RENDER_PART: Final = 0.8
"""Fraction of the time between two frames that rendering one frame may take."""
TRAIN_NICE: Final = 5
"""Unix nice value of the training thread: positive, for a lower CPU priority."""


@dataclass(frozen=True)
class RehearsalOverrides:
    """Replacements for the network and the camera in a rehearsal, a measured call with a recording as the camera.

    Attributes:
        sink: receives the rendered frames in place of the media server.
        camera: opens the source of the home camera.
        on_tracked: called with each tracked frame and the learner of its subject, on the tracking thread.
    """

    sink: FrameSink
    camera: Callable[[], Source]
    on_tracked: Callable[[TrackedFrame, Learner | None], None]


class Daemon:
    """One call: `start` it, wait for `stopping` with `wait`, then `stop` it.  Used by the main thread.

    Attributes:
        stopping: set when the call is to end; any thread may set it.
        failure: error message if the call has ended because of an error; None otherwise.
        telemetry: counters and errors of the call.
    """

    def __init__(self, config: Config, options: CallOptions, overrides: RehearsalOverrides | None = None) -> None:
        """Create all parts of the call.  UserError if a setting, a key, a take or the head model is invalid."""
        run, cores = config.run, os.cpu_count() or 1
        self.config, self.options = config, options
        self.stopping = threading.Event()
        self.failure: str | None = None
        self._memory_mb = run.memory_mb if run.device == "cpu" else 0
        self.telemetry = telemetry = Telemetry(self._memory_mb)
        self._share = CpuShare.of(cores, run.train_share, run.device)
        self._head = load_head(options.head)
        self._audio = AudioBus()
        self._browser_camera: Mailbox[CameraFrame] = Mailbox("browser camera")
        self._signals = signals = Signals(
            self.stopping, threading.Event(), threading.Event(), threading.Event(), Mailbox("camera")
        )
        signals.not_rendering.set()
        self._display = Display(config.stream.size, 1000.0 * RENDER_PART / run.render_fps, Backgrounds(run.background))
        self._autosave = AvatarAutosave(telemetry)
        self._learners = LearnerManager(config, self._head, self._autosave)
        self._cameras = CameraManager(
            config,
            options,
            self._head,
            browser=self._browser_camera,
            audio=self._audio,
            telemetry=telemetry,
            autosave=self._autosave,
            learners=self._learners,
            open_home_source=overrides.camera if overrides is not None else None,
        )
        self._stats = ExpressionStatsCache(self._head)
        self._receivers = self._open_receivers() if overrides is None else DriverReceivers({})
        self._drivers = DriverSelector(
            self._receivers,
            run.drive if overrides is None else "tracker",
            config.drivers,
            self._head,
            idles=config.drivers.idle and overrides is None,
            telemetry=telemetry,
            expression_stats=self._expression_stats,
        )
        self._status = Status(options.source, self._head, telemetry, self._display)
        self._controls = CallControls(
            self._cameras,
            self._drivers,
            self._receivers,
            self._display,
            camera=self._browser_camera,
            audio=self._audio,
            status=self.status,
            metrics=telemetry.metrics,
            models=options.models,
            new_state=signals.new_state,
            stopping=self.stopping,
        )
        self._sinks = self._open_sinks() if overrides is None else FrameSinks(overrides.sink)
        self._supervisor = Supervisor(telemetry.error, telemetry.errors.clear, self._end_call)
        for worker in self._receivers.workers:
            self._supervisor.adopt(worker)
        self._track = TrackStage(
            self._cameras,
            self._drivers,
            self._sinks,
            telemetry,
            signals,
            take_turns=take_turns(cores, run.device),
            on_tracked=overrides.on_tracked if overrides is not None else None,
        )
        telemetry.register(StatusCollector(self.status))

    @property
    def avatar_path(self) -> Path | None:
        """Folder of the avatar of the home camera's current subject; None before the home camera is open."""
        home = self._cameras.cameras.home
        return home.path if home is not None else None

    @property
    def address(self) -> str:
        """URL of the web page that the call serves, valid after `start`."""
        return self._sinks.address

    # ---- start and stop

    def start(self, announce: Callable[[str], None] = lambda _address: None) -> None:
        """Open the camera, serve the web page and start all threads.  ``announce`` is called with the page's URL.

        Returns early if `stopping` is set meanwhile.  Raises UserError if a camera, model, address or output is not
        available; after any error everything that was started is stopped.
        """
        try:
            self._start(announce)
        except BaseException:
            self.stop()
            raise

    def _start(self, announce: Callable[[str], None]) -> None:
        cameras = self._cameras
        limit_torch_threads(self._share.render_threads)
        path, avatar = cameras.find_avatar()
        if self.stopping.is_set():
            return
        self._receivers.start()
        # A camera that cannot be opened is an error before the page is served.  The synthetic actor is always
        # available but takes some seconds to create: it is created while the page is served.
        if self.options.source != "synthetic":
            cameras.open_home(path, avatar)
        self._sinks.start()
        threading.Thread(target=self._warm_up, name="warm up", daemon=True).start()
        first = card("One moment", "The camera is being started.", self._display.side)
        self._sinks.push_frame(OutputFrame(0, now_ns(), first))
        announce(self._sinks.address)
        if cameras.cameras.home is None:
            cameras.open_home(path, avatar)
        if self.stopping.is_set():
            return
        cameras.use_home()
        # A full garbage collection stops every thread for a tenth of a second: what was imported is exempt from now on.
        gc.collect()
        gc.freeze()
        self.telemetry.watch([self._signals.frames, self._browser_camera])
        self._start_stages()

    def _start_stages(self) -> None:
        config, cameras, signals, telemetry = self.config, self._cameras, self._signals, self.telemetry
        share, begin = self._share, self._supervisor.begin
        capture = CaptureStage(config, cameras, telemetry, signals)
        render = RenderStage(config, cameras, self._drivers, self._display, self._sinks, telemetry, signals)
        train = TrainStage(
            cameras, self._learners, self._autosave, telemetry, signals, share.duty, ReplayLimiter(self._memory_mb)
        )
        supervise = SuperviseStage(
            config,
            cameras,
            SessionController(self._drivers, telemetry),
            self._supervisor,
            self._sinks,
            telemetry,
            signals,
            status=self.status,
            end_call=self._end_call,
        )
        begin("capture", capture.round)
        begin("track", self._track.round, mend=self._track.renew_tracker)
        begin("render", render.round, threads=share.render_threads)
        begin("train", train.round, threads=share.train_threads, nice=TRAIN_NICE)
        begin("supervise", supervise.round)

    def stop(self) -> None:
        """Stop every thread, save the avatars, and release everything; may be called twice."""
        self.stopping.set()
        self._signals.frames.close()
        busy = self._supervisor.stop()
        self._receivers.stop()
        if "train" in busy:
            self.telemetry.report("avatar", "training hangs: the file of the last autosave stays")
        self._cameras.close(save="train" not in busy, release=not busy)
        if self._autosave.error is not None:
            self._end_call(f"not saved, the file of the last autosave stays: {self._autosave.error}")
        self._sinks.stop()
        gc.unfreeze()

    def wait(self) -> None:
        """Block until the call is to end; `failure` then holds the error message if it was an error."""
        while not self.stopping.wait(1.0):
            self._supervisor.overdue(time.monotonic())

    def _end_call(self, error: str) -> None:
        if self.failure is None:
            self.failure = error
            log.error("the call ends: %s", error, extra={"event": "call_ends", "fields": {"error": error}})
        self.stopping.set()

    # ---- parts of the call

    def _open_receivers(self) -> DriverReceivers:
        return open_receivers(
            self.config.run,
            self.config.drivers,
            self._head,
            telemetry=self.telemetry,
            new_state=self._signals.new_state,
            expression_stats=self._expression_stats,
        )

    def _expression_stats(self) -> tuple[str, ExpressionStats] | None:
        """Fingerprint and expression statistics of the avatar in use."""
        camera = self._cameras.current
        return self._stats.read(camera.learner if camera is not None else None)

    def _open_sinks(self) -> FrameSinks:
        options, stream, report = self.options, self.config.stream, self.telemetry.report
        preview = PreviewWindow(self._controls.on_preview_command) if options.preview else None
        local: list[LocalFrameSink] = []
        if options.record is not None:
            failed = partial(report, "record")
            local.append(Recorder(options.record, stream.fps, self._head.sha256, self._audio, failed))
        if options.virtual_camera:
            local.append(VirtualCamera(stream.size, stream.fps, partial(report, "virtual camera")))
        return FrameSinks(MediaServer(stream, self._controls), preview, local)

    def _warm_up(self) -> None:
        """Compile the backend while the camera starts; the first time on a machine this takes seconds."""
        from insta_runtime.avatar import choose_device
        from insta_runtime.backends import warm_up

        run = self.config.run
        warm_up(run.backend, choose_device(run.device), self.config.avatar)

    def status(self) -> dict[str, Any]:
        """JSON object of `GET /status`; any thread."""
        sinks, now = self._sinks, time.monotonic()
        return self._status.read(
            StatusInputs(
                self._cameras.current,
                self._drivers.driver,
                sinks.viewers,
                sinks.stream_stats(),
                self._receivers.zmq_address,
                self._receivers.status(),
                self._supervisor.health(now) | sinks.health(now),
                self._audio.status(),
            )
        )
