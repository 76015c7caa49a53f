"""The daemon: wires sources, tracking, drivers, learning, display and streaming, and owns their threads.

    capture -> camera mailbox -> track -> pose ------------> render -> outlets: MediaServer (network, encode), preview
                                   \\-> learner (replay) -> train -> weight exchange -^
    driving: ZeroMQ, bridges, a take -------------------------^

`supervise` swaps the person when a browser lends its camera, advances the course of the call, and names what stalls.
Every thread is started and stopped here; what they exchange is frozen and goes through mailboxes.
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
from typing import Any, Final

from insta_runtime.head import load_head
from telepresence.call.autosave import Keeper
from telepresence.call.camera_manager import Options, People
from telepresence.call.camera_session import Person
from telepresence.call.controls import CallControls
from telepresence.call.driver_selection import Driving
from telepresence.call.session import AWAY, Session, State
from telepresence.call.session_controller import Course
from telepresence.call.sinks import Local, Outlets
from telepresence.call.status import Moment, Status, missing
from telepresence.config import Config
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.cards import card
from telepresence.display.display import Display, Scene
from telepresence.learning.budget import Mode
from telepresence.learning.learner import Learner
from telepresence.outputs import PreviewWindow, Recorder, VirtualCamera
from telepresence.runtime.audio import SoundBus
from telepresence.runtime.clock import Ratekeeper, now_ns
from telepresence.runtime.frames import CameraFrame, Pose, ShownFrame, TrackedFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.scheduling import CpuShare, take_turns, training_pause
from telepresence.runtime.supervision import Supervisor
from telepresence.runtime.telemetry import Telemetry
from telepresence.runtime.worker import limit_torch_threads
from telepresence.sources import Source
from telepresence.streaming import MediaServer, Outlet, StreamHooks

log = logging.getLogger("telepresence")

RENDER_PART: Final = 0.8
"""Part of the time between two pictures that rendering one may take; the rest is for everybody else."""
MOVE_S: Final = 0.1
"""Without a new state the picture is looked after this often (seconds): faces that left ease to neutral."""
UNSEEN_S: Final = 1.0
"""While nobody looks there is a picture so often (seconds): whoever comes sees no old one."""
READ_S: Final = 0.5
TICK_S: Final = 0.1
TURN_S: Final = 0.25
"""Where tracking and drawing take turns, tracking waits no longer for a picture (seconds)."""
TRAIN_NICE: Final = 5


@dataclass(frozen=True)
class StandIns:
    """What takes the place of the world when a call is rehearsed: no network is touched then.

    ``outlet`` takes the pictures, ``camera`` opens the source of the person at home, and ``tracked`` hears of every
    tracked picture and of who learns from it, in the tracking thread.
    """

    outlet: Outlet
    camera: Callable[[], Source]
    tracked: Callable[[TrackedFrame, Learner | None], None]


class Daemon:
    """One running call.  `start`, wait on `stopping`, `stop`; `failure` says why it stopped by itself."""

    def __init__(self, config: Config, options: Options, stand_ins: StandIns | None = None) -> None:
        run = config.run
        self.config, self.options = config, options
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.telemetry = Telemetry()
        self._share = CpuShare.of(os.cpu_count() or 1, run.train_share, run.device)
        self._backgrounds = Backgrounds(run.background)
        self._display = Display(config.stream.size, 1000.0 * RENDER_PART / run.render_fps, self._backgrounds)
        self._camera: Mailbox[CameraFrame] = Mailbox("browser camera")
        self._sound = SoundBus()
        self._frames: Mailbox[tuple[Person, CameraFrame]] = Mailbox("camera")
        self._turns = take_turns(os.cpu_count() or 1, run.device)
        self._waits = threading.Event()  # the tracker waits for a picture
        self._drawn = threading.Event()  # no picture is being drawn
        self._drawn.set()
        self._moved = threading.Event()  # there is a new state to show
        self._stages = Supervisor(self.telemetry.error, self.telemetry.errors.clear, self._die)
        self._rendered_at = time.monotonic()
        self._settled = False  # it was live once: all that a call needs is there
        self._keeper = Keeper(self.telemetry.note)
        self._head = load_head(options.head)
        self._stand_ins = stand_ins
        self._people = People(
            config,
            options,
            self._head,
            self._camera,
            note=self.telemetry.note,
            save=self._keeper.save,
            hear=self._sound.play,
            open_home=stand_ins.camera if stand_ins is not None else None,
        )
        self._status = Status(options.source, self._head, self.telemetry, self._display, self._backgrounds)
        self._driving = Driving(
            run,
            config.drivers,
            self._head,
            note=self.telemetry.note,
            moved=self._moved.set,
            usual=self._people.usual,
            waited=partial(self.telemetry.stage, "drive"),
            alone=stand_ins is not None,
        )
        for worker in self._driving.workers:
            self._stages.adopt(worker)
        self._course = Course(self._driving, self.telemetry.note)
        self._controls = CallControls(
            self._people,
            self._driving,
            self._display,
            self._backgrounds,
            self._sound,
            models=options.models,
            moved=self._moved.set,
            stopping=self.stopping,
        )
        self._outlets = self._open_outlets()
        self.telemetry.export(self.status)

    @property
    def avatar_path(self) -> Path | None:
        """Where the avatar of the person at home is saved."""
        return self._people.home.path if self._people.home is not None else None

    @property
    def address(self) -> str:
        """What a browser opens, once `start` has returned."""
        return self._outlets.address

    # ---- life

    def start(self, announce: Callable[[str], None] = lambda _address: None) -> None:
        """Open the camera, serve the page, start every thread.  ``announce`` gets the page's address.

        Raises UserError if something that was asked for cannot be had; nothing is left running then.
        """
        try:
            self._start(announce)
        except BaseException:
            self.stop()
            raise

    def _start(self, announce: Callable[[str], None]) -> None:
        run, people = self.config.run, self._people
        limit_torch_threads(self._share.render_threads)
        path, avatar = people.stored()
        self._driving.start()
        # What may be missing is found out before anything is promised.  The actor is never missing, but takes
        # some seconds to get dressed: the page is there before.
        if self.options.source != "synthetic":
            people.open_home(path, avatar)
        self._outlets.start()
        threading.Thread(target=self._warm_up, name="warm up", daemon=True).start()
        first = card("One moment", "The camera is being started.", self._display.side)
        self._outlets.show(ShownFrame(0, now_ns(), first))
        announce(self._outlets.address)
        if people.home is None:
            people.open_home(path, avatar)
        people.begin()
        # Every thread waits while Python's garbage collector goes through all that was imported, a tenth of a second.
        gc.collect()
        gc.freeze()
        self.telemetry.watch([self._frames, self._camera])
        self._capture_pace, self._render_pace = Ratekeeper(run.render_fps), Ratekeeper(run.render_fps, early=1.0)
        share = self._share
        self._stages.begin("capture", self._capture)
        self._stages.begin("track", self._track, mend=self._renew_tracker)
        self._stages.begin("render", self._render, threads=share.render_threads)
        self._stages.begin("train", self._train, threads=share.train_threads, nice=TRAIN_NICE)
        self._stages.begin("supervise", self._supervise)

    def stop(self) -> None:
        """Stop every thread, save what was learned, release everything; may be called twice."""
        self.stopping.set()
        self._frames.close()
        busy = self._stages.stop()
        self._driving.stop()
        if "train" in busy:
            self.telemetry.note("avatar", "training hangs: the avatar is as it was saved last")
        self._people.close(save="train" not in busy, release=not busy)
        if self._keeper.trouble is not None:
            self._die(f"the avatar is as it was saved last: {self._keeper.trouble}")
        self._outlets.stop()
        gc.unfreeze()

    def wait(self) -> None:
        """Until the call is to end, or has to: by then `failure` says why."""
        while not self.stopping.wait(1.0):
            self._stages.overdue(time.monotonic())

    def _die(self, text: str) -> None:
        if self.failure is None:
            self.failure = text
            log.error("the call ends: %s", text, extra={"event": "call_ends", "fields": {"error": text}})
        self.stopping.set()

    # ---- the threads' rounds

    def _capture(self) -> None:
        # Camera pictures that nothing is made of are not worth their time, nor is one that is to wait for the tracker.
        self._capture_pace.wait(self.stopping)
        self._waits.wait(READ_S)
        person = self._people.current
        frame = person.read(READ_S) if person is not None else None
        if person is not None and frame is not None:
            self.telemetry.captured.tick()
            self._waits.clear()
            self._frames.put((person, frame))

    def _track(self) -> None:
        if self._turns:
            self._drawn.wait(TURN_S)
        self._waits.set()
        item = self._frames.get(READ_S)
        if item is None or item[0] is not self._people.current:
            return
        person, frame = item
        began = time.perf_counter()
        tracked = person.track(frame, partial(self._follow, person))
        self.telemetry.stage("track", time.perf_counter() - began)
        self.telemetry.tracked.tick()
        if not frame.withheld:
            self._outlets.see(tracked)
        if tracked.pose is not None:
            self.telemetry.found.tick()
        person.notice(tracked, time.monotonic())
        if not self._driving.external:
            self._moved.set()
        if self._stand_ins is not None:
            self._stand_ins.tracked(tracked, person.learner)

    def _follow(self, person: Person, pose: Pose) -> None:
        """Show ``pose``; the tracker has more to find out about its picture."""
        learner = person.learner
        shape = learner.avatar.model.shape if learner is not None else person.tracker.shape
        self._driving.follow(pose.state, shape)
        if not self._driving.external:
            self._moved.set()

    def _render(self) -> None:
        self._driving.wait(self._moved, MOVE_S, self._render_pace, self.stopping)
        now = time.monotonic()
        if not self._outlets.watched and now - self._rendered_at < UNSEEN_S:
            return
        self._rendered_at = now
        began = time.perf_counter()
        person = self._people.current
        self._drawn.clear()
        try:
            frame = self._display.picture(self._scene(person)) if person is not None else None
        finally:
            self._drawn.set()
        if frame is None:
            self._render_pace.forgive()
        else:
            self.telemetry.stage("render", time.perf_counter() - began)
            self.telemetry.shown.tick()
            if frame.is_avatar:
                self.telemetry.avatar.tick()
            self._outlets.show(frame)
            self.telemetry.latency((now_ns() - frame.t_capture_ns) / 1e9)
        if person is not None and person.learner is not None:
            self._display.refresh(person.learner)

    def _train(self) -> None:
        person = self._people.current
        # Whether it is still the same face is told from pictures, too.
        if person is None or (person.budget.mode is Mode.RESTING and person.sitter.acquaintance.settled):
            if person is not None:
                self._keeper.keep(person)
            self.stopping.wait(TICK_S)
            return
        if self._people.at_first_sight(person):
            self._moved.set()
            return
        began = time.perf_counter()
        learner = self._people.learner(person)
        samples = learner.samples if learner is not None else 0
        if learner is None or not learner.work():
            self.stopping.wait(0.05)
            return
        spent = time.perf_counter() - began
        self.telemetry.stage("train", spent)
        self.telemetry.trained.tick()
        self.telemetry.samples.tick(count=learner.samples - samples)
        self._keeper.keep(person)
        self.stopping.wait(training_pause(spent, self._share.duty))

    def _supervise(self) -> None:
        if self.stopping.wait(TICK_S):
            return
        now = time.monotonic()
        self._people.follow(now, self._stages.rounds(("capture", "track", "render", "train")))
        person = self._people.current
        if person is not None:
            self._course.advance(person, self._stages.health(now)["train"], now)
            if person.session.state is State.LIVE and not self._settled:
                self._settled = True
                gc.freeze()  # what calibration and compilation have brought stays, too
        self.telemetry.measure_memory(self.config.run.device, now)
        self._stages.watch(now)
        self._outlets.tell(now, self.status)
        if (trouble := self._outlets.watch(now)) is not None:
            self._die(trouble)

    # ---- what they ask of each other

    def _open_outlets(self) -> Outlets:
        if self._stand_ins is not None:
            return Outlets(self._stand_ins.outlet)
        controls = self._controls
        hooks = StreamHooks(
            self.status,
            self.telemetry.metrics,
            self._camera,
            self._people.lend,
            controls.background,
            controls.choose_background,
            controls.answer,
            controls=controls.of_page(),
            vision=controls.vision,
            sound=self._sound,
        )
        options, stream = self.options, self.config.stream
        preview = PreviewWindow(controls.grant) if options.preview else None
        others: list[Local] = []
        if options.record is not None:
            failed = partial(self.telemetry.note, "record")
            others.append(Recorder(options.record, stream.fps, self._head.sha256, self._sound, failed))
        if options.virtual_camera:
            others.append(VirtualCamera(stream.size, stream.fps, partial(self.telemetry.note, "virtual camera")))
        return Outlets(MediaServer(stream, hooks), preview, others)

    def _warm_up(self) -> None:
        """Compile while the camera starts: at the first start ever it takes seven seconds on two cores."""
        from insta_runtime.avatar import choose_device
        from insta_runtime.backends import warm_up

        run = self.config.run
        warm_up(run.backend, choose_device(run.device), self.config.avatar)

    def _renew_tracker(self) -> None:
        """After the tracker raised: MediaPipe does not recover from every error."""
        person = self._people.current
        if person is not None:
            person.renew_tracker()

    def _scene(self, person: Person) -> Scene:
        """What the picture of this moment depends on."""
        session, learner, tracked = person.session, person.learner, person.tracked
        learned = learner.avatar.camera if learner is not None else None
        state, camera = self._driving.pose(person.pose, learned, person.sitter)
        away = session.state in AWAY and not self._driving.idles
        absent = time.monotonic() - session.last_face if away and session.last_face else 0.0
        bare = self.config.run.show_camera and tracked is not None and not tracked.withheld
        raw = tracked.crop_rgb if bare and tracked is not None else None
        mesh = learner.mesh if learner is not None and learner.mesh is not None else person.sitter.mesh
        title, hint = missing(person)
        return Scene(state, camera, learner, self._good(session, learner), absent, raw, title, hint, mesh)

    def _good(self, session: Session, learner: Learner | None) -> bool:
        """Whether the avatar is to be shown: it is live, or came from a file and was not measured yet."""
        return session.live or (learner is not None and learner.score is None and learner.loaded)

    # ---- what it says of itself

    def status(self) -> dict[str, Any]:
        """What `GET /status` shows."""
        outlets, now = self._outlets, time.monotonic()
        return self._status.read(
            Moment(
                self._people.current,
                self._driving.driver,
                outlets.viewers,
                outlets.stream_stats(),
                self._driving.address,
                self._driving.report(),
                self._stages.health(now) | outlets.health(now),
                self._sound.status(),
            )
        )
