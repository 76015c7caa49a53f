"""The daemon: wires sources, tracking, drivers, learning, display and streaming, and owns their threads.

    capture -> camera mailbox -> track -> pose ------------> render -> MediaServer (network, encode), preview
                                   \\-> learner (replay) -> train -> weight exchange -^
    zmq ------------------------------------------------------^

`supervise` advances the session, swaps the person when a browser lends its camera, and names what stalls.
Every thread is started and stopped here; what they exchange is frozen and goes through mailboxes.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from telepresence.backgrounds import Backgrounds
from telepresence.cards import card
from telepresence.clock import Ratekeeper, now_ns
from telepresence.config import Config
from telepresence.display import Display, Scene
from telepresence.drivers.arbiter import FRESH_S, Drive, Driver, choose
from telepresence.drivers.transfer import Habits, LiveTransfer, fingerprint
from telepresence.drivers.zeromq import ZeroMqDriver
from telepresence.frames import CameraFrame, ShownFrame
from telepresence.learning.learner import Learner
from telepresence.mailbox import Mailbox
from telepresence.outputs import PreviewWindow
from telepresence.pacing import CpuShare, training_pause
from telepresence.person import Person, Pose, make_tracker, new_avatar_path, stored_avatar
from telepresence.session import AWAY, Facts, Session, State
from telepresence.sources import Source, open_source
from telepresence.sources.synthetic import SyntheticSource
from telepresence.streaming import MediaServer, StreamHooks
from telepresence.telemetry import Telemetry
from telepresence.worker import Worker, limit_torch_threads

if TYPE_CHECKING:
    from telepresence.tracking.crop import CropPolicy
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

RENDER_PART: Final = 0.8
"""Part of the time between two pictures that rendering one may take; the rest is for everybody else."""
SAVE_S: Final = 60.0
"""Seconds between saves of the avatar."""
NO_FACE_S: Final = 10.0
"""Seconds without any face after which `/status` says so."""
STALLED_S: Final = 60.0
"""Seconds without a finished round after which a stage is said to have stalled."""
MOVE_S: Final = 0.1
"""Without a new state the picture is looked after this often (seconds): faces that left ease to neutral."""
RESUME_S: Final = 10.0
"""A browser whose connection breaks gets its avatar back if it returns within so many seconds."""
READ_S: Final = 0.5
TICK_S: Final = 0.1
JOIN_S: Final = 10.0
TRAIN_NICE: Final = 5


@dataclass(frozen=True)
class Options:
    """What the command line asks of one run, besides the configuration."""

    source: str
    avatar: Path | None = None
    head: Path | None = None
    models: Path | None = None
    track: bool = False
    preview: bool = False
    freeze: bool = False


class Daemon:
    """One running call.  `start`, wait on `stopping`, `stop`; `failure` says why it stopped by itself."""

    def __init__(self, config: Config, options: Options) -> None:
        run = config.run
        self.config, self.options = config, options
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.telemetry = Telemetry()
        self._share = CpuShare.of(os.cpu_count() or 1, run.train_share)
        self._backgrounds = Backgrounds(run.background)
        self._display = Display(config.stream.size, 1000.0 * RENDER_PART / run.render_fps, self._backgrounds)
        self._camera: Mailbox[CameraFrame] = Mailbox("browser camera")
        self._frames: Mailbox[tuple[Person, CameraFrame]] = Mailbox("camera")
        self._preview = PreviewWindow(self.stopping.set) if options.preview else None
        self._moved = threading.Event()  # there is a new state to show
        self._workers: dict[str, Worker] = {}
        self._saved_at = time.monotonic()
        self._driver: Driver = "tracker"
        self._zmq: ZeroMqDriver | None = None
        self._habits: tuple[str, Habits] | None = None
        self._known_states = 0
        self._server: MediaServer | None = None
        self._home: Person | None = None  # the one from --source
        self._guest: Person | None = None  # the one before a browser's camera
        self._current: Person | None = None
        self._lent = self._refused = False
        self._leaving: tuple[Person, float] | None = None

    @property
    def avatar_path(self) -> Path | None:
        """Where the avatar of the person at home is saved."""
        return self._home.path if self._home is not None else None

    @property
    def address(self) -> str | None:
        """What a browser opens, once `start` has returned."""
        return self._server.address if self._server is not None else None

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
        run, options = self.config.run, self.options
        limit_torch_threads(self._share.render_threads)
        self._head = load_head(options.head)
        path = options.avatar or new_avatar_path()
        avatar = stored_avatar(path, self._head, run.device)
        self._zmq = ZeroMqDriver(
            run.zmq,
            basis=self._head.basis,
            head_sha256=self._head.sha256,
            expressions=len(self._head.expression_names),
            refused=lambda text: self._note("zmq", text),
            accepted=self._moved.set,
            transfer=LiveTransfer(self._head, self._shown_person),
        )
        self._zmq.start()
        # What may be missing is found out before anything is promised.  The actor is never missing, but takes
        # some seconds to get dressed: the page is there before.
        if options.source != "synthetic":
            self._home = self._open_home(path, avatar)
        hooks = StreamHooks(
            self.status, self.telemetry.metrics, self._camera, self._lend, self.background, self._choose_background
        )
        self._server = MediaServer(self.config.stream, hooks)
        self._server.start()
        if self._preview is not None:
            self._preview.start()
        threading.Thread(target=self._warm_up, name="warm up", daemon=True).start()
        self._show(ShownFrame(0, now_ns(), card("One moment", "The camera is being started.", self._display.side)))
        announce(self._server.address)
        self._home = self._current = self._home or self._open_home(path, avatar)
        self.telemetry.watch([self._frames, self._camera])
        self._capture_pace, self._render_pace = Ratekeeper(run.render_fps), Ratekeeper(run.render_fps)
        self._begin("capture", self._capture)
        self._begin("track", self._track)
        self._begin("render", self._render, threads=self._share.render_threads)
        self._begin("train", self._train, threads=self._share.train_threads, nice=TRAIN_NICE)
        self._begin("supervise", self._supervise)

    def stop(self) -> None:
        """Stop every thread, save what was learned, release everything; may be called twice."""
        self.stopping.set()
        self._frames.close()
        for worker in self._workers.values():
            worker.stop.set()
        stopped = [worker.join(JOIN_S) for worker in self._workers.values()]
        if self._zmq is not None:
            self._zmq.stop()
        for person in (self._home, self._guest, self._leaving and self._leaving[0]):
            if person is not None:
                self._save(person)
                if all(stopped):
                    person.close()
        self._home = self._guest = self._leaving = self._current = None
        if self._preview is not None:
            self._preview.stop()
        if self._server is not None:
            self._server.stop()

    def _begin(self, name: str, work: Callable[[], None], *, threads: int = 1, nice: int = 0) -> None:
        self._workers[name] = worker = Worker(
            name,
            work,
            setup=lambda: limit_torch_threads(threads),
            failed=self._failed,
            fatal=self._die,
            nice=nice,
        )
        worker.start()

    def _failed(self, stage: str, error: Exception) -> None:
        self.telemetry.error(stage, f"{type(error).__name__}: {error}")

    def _die(self, stage: str, error: Exception) -> None:
        self.failure = f"stage {stage} failed again and again: {type(error).__name__}: {error}"
        self.stopping.set()

    # ---- who is before the camera

    def _open_home(self, path: Path, avatar: Avatar | None) -> Person:
        name = self.options.source
        return self._person(name, open_source(name, browser=self._camera), path, avatar)

    def _person(self, name: str, source: Source, path: Path, avatar: Avatar | None) -> Person:
        """Whoever is before ``source``; their avatar belongs at ``path``.  UserError if they cannot be tracked."""
        try:
            tracker = self._tracker(source, avatar)
        except UserError:
            source.close()
            raise
        person = Person(
            name, source, partial(open_source, name, browser=self._camera), tracker, path, self._report_source
        )
        person.learner = self._learner(avatar, path) if avatar is not None else None
        return person

    def _tracker(self, source: Source, avatar: Avatar | None) -> Tracker:
        run, options = self.config.run, self.options
        actor = source.actor if isinstance(source, SyntheticSource) and not options.track else None
        return make_tracker(self._head, actor, avatar, cast("CropPolicy", run.crop), run.size, options.models)

    def _learner(self, avatar: Avatar, path: Path) -> Learner:
        run = self.config.run
        return Learner(avatar, path, freeze=self.options.freeze or run.train_share == 0.0, backend=run.backend)

    def _lend(self, started: bool) -> None:
        """A browser began or ceased to lend its camera (called on the network thread)."""
        self._lent = started

    def _swap(self, now: float) -> None:
        """Follow the browser's camera: a new person while it is lent, the one at home when it is taken back."""
        if self._home is None or self.options.source == "browser":
            return
        if self._lent and self._guest is None and not self._refused:
            self._guest = self._leaving[0] if self._leaving is not None else self._new_guest()
            self._current, self._leaving = self._guest or self._home, None
        elif not self._lent and self._guest is not None:
            self._leaving = (self._guest, now)
            self._guest, self._current = None, self._home
        elif not self._lent and self._refused:
            self._refused = False
            self.telemetry.errors.clear("browser camera")
        elif self._leaving is not None:
            self._see_off(*self._leaving, now)

    def _new_guest(self) -> Person | None:
        source = open_source("browser", browser=self._camera)
        try:
            guest = self._person("browser", source, new_avatar_path(), None)
        except UserError as error:
            self._refused = True
            self._note("browser camera", str(error))
            return None
        log.info("a browser lends its camera; its avatar will be %s", guest.path)
        return guest

    def _see_off(self, person: Person, since: float, now: float) -> None:
        """Save and close the person who left, unless a broken connection brings them back within `RESUME_S`."""
        rounds = (self._workers[name].heartbeat for name in ("capture", "track", "render", "train"))
        if now - since > RESUME_S and min(rounds) > since:
            self._leaving = None
            self._save(person)
            person.close()

    def _shown_person(self) -> tuple[str, Habits] | None:
        """Whose avatar there is and what is usual for them (called on the zmq thread)."""
        person = self._current
        learner = person.learner if person is not None else None
        if learner is None:
            return None
        shape, seen = learner.avatar.model.shape, learner.avatar.model.code.repertoire
        who = fingerprint(shape)
        if self._habits is None or self._habits[0] != who or seen.count > 1.1 * self._known_states:
            if not seen.count:
                return None
            self._habits, self._known_states = (who, Habits.of(seen, self._head)), seen.count
        return self._habits

    # ---- the threads' rounds

    def _capture(self) -> None:
        # Camera pictures that nothing is made of are not worth their time.
        self._capture_pace.wait(self.stopping)
        person = self._current
        frame = person.read(READ_S) if person is not None else None
        if person is not None and frame is not None:
            self.telemetry.captured.tick()
            self._frames.put((person, frame))

    def _track(self) -> None:
        item = self._frames.get(READ_S)
        if item is None or item[0] is not self._current:
            return
        person, frame = item
        began = time.perf_counter()
        tracked = person.tracker.track(frame)
        self.telemetry.stage("track", time.perf_counter() - began)
        self.telemetry.tracked.tick()
        observation = tracked.observation
        if observation is not None:
            person.pose = Pose(observation.state, observation.camera)
            if self._zmq is not None:
                self._zmq.follow(observation.state)
            if person.learner is not None:
                person.learner.offer(observation, time.monotonic())
        person.tracked = tracked
        self._moved.set()

    def _render(self) -> None:
        self._render_pace.wait(self.stopping)
        self._moved.wait(MOVE_S)
        self._moved.clear()
        began = time.perf_counter()
        person = self._current
        frame = self._display.picture(self._scene(person)) if person is not None else None
        if frame is not None:
            self.telemetry.stage("render", time.perf_counter() - began)
            self.telemetry.shown.tick()
            if frame.is_avatar:
                self.telemetry.avatar.tick()
            self._show(frame)
            self.telemetry.latency((now_ns() - frame.t_capture_ns) / 1e9)
        if person is not None and person.learner is not None:
            self._display.refresh(person.learner)

    def _train(self) -> None:
        person = self._current
        # With nobody there for long, nothing new is learned: let the machine rest.
        if person is None or person.session.state is State.IDLE:
            self.stopping.wait(READ_S)
            return
        began = time.perf_counter()
        learner = self._learning(person)
        if learner is None or not learner.work():
            self.stopping.wait(0.05)
            return
        spent = time.perf_counter() - began
        self.telemetry.stage("train", spent)
        self.telemetry.trained.tick()
        if time.monotonic() - self._saved_at > SAVE_S:
            self._save(person)
        self.stopping.wait(training_pause(spent, self._share.duty))

    def _supervise(self) -> None:
        if self.stopping.wait(TICK_S):
            return
        now = time.monotonic()
        self._swap(now)
        person = self._current
        if person is not None:
            before = person.session.state
            person.session = person.session.advance(self._facts(person), now)
            if person.session.state is not before:
                log.info("%s -> %s", before, person.session.state)
            self._watch_for_faces(person, now)
        for worker in self._workers.values():
            if worker.silent_for(now) > STALLED_S:
                self._note(worker.name, f"no sign of life for {STALLED_S:.0f} s")
                worker.heartbeat = now

    # ---- what they ask of each other

    def _warm_up(self) -> None:
        """Compile while the camera starts: at the first start ever it takes seven seconds on two cores."""
        from insta_runtime.avatar import choose_device
        from insta_runtime.backends import warm_up

        run = self.config.run
        warm_up(run.backend, choose_device(run.device), self.config.avatar)

    def _learning(self, person: Person) -> Learner | None:
        """The learner of ``person``, who gets a new avatar once it is known who that is."""
        shape = person.tracker.shape
        if person.learner is None and person.pose is not None and shape is not None:
            config, device = self.config.avatar, self.config.run.device
            avatar = Avatar.create(self._head, shape, person.pose.camera, config, device)
            if (calibration := person.tracker.calibration) is not None:
                avatar.calibration = json.loads(calibration.to_json())
            person.learner = self._learner(avatar, person.path)
        return person.learner

    def _facts(self, person: Person) -> Facts:
        age = self._zmq.age(now_ns()) if self._zmq is not None else None
        self._driver = choose(cast(Drive, self.config.run.drive), age)
        score = person.learner.score if person.learner is not None else None
        return Facts(
            face=person.face(),
            calibrated=person.learner is not None,
            gain_db=score.gain_db if score is not None else None,
            driven=person.learner is not None and self._driver == "zmq" and age is not None and age < FRESH_S,
        )

    def _scene(self, person: Person) -> Scene:
        """What the picture of this moment depends on."""
        session, learner, pose, tracked = person.session, person.learner, person.pose, person.tracked
        state = pose.state if pose is not None else None
        camera = pose.camera if pose is not None else None
        if self._driver == "zmq" and self._zmq is not None:
            driven = self._zmq.newest()
            state = driven.state if driven is not None else state
            if driven is not None and driven.transferred:
                camera = None
        if learner is not None and camera is None:
            camera = learner.avatar.camera
        absent = time.monotonic() - session.last_face if session.state in AWAY and session.last_face else 0.0
        raw = tracked.crop_rgb if self.config.run.show_camera and tracked is not None else None
        title, hint = self._missing(person)
        return Scene(state, camera, learner, self._good(session, learner), absent, raw, title, hint)

    def _good(self, session: Session, learner: Learner | None) -> bool:
        """Whether the avatar is to be shown: it is live, or came from a file and was not measured yet."""
        return session.live or (learner is not None and learner.score is None and learner.loaded)

    def _missing(self, person: Person) -> tuple[str, str]:
        """The words of the card: what there is no picture for."""
        if person.trouble is not None:
            return "No camera picture", person.trouble
        if not person.seen:
            if person.name == "browser":
                return "Waiting for a camera", "Press “Use my camera” on the page."
            return "Waiting for the camera", f"{person.name} has sent no picture yet."
        if person.session.state is State.WAITING:
            return "Waiting for a face", "Sit so that the camera sees your whole face."
        return "Getting to know you", "Look into the camera and talk for a moment."

    def _watch_for_faces(self, person: Person, now: float) -> None:
        if person.session.state is not State.WAITING:
            self.telemetry.errors.clear("face")
        elif person.seen and now - person.began > NO_FACE_S:
            person.began = now
            self._note("face", f"no face was found in the pictures of {person.name} so far")

    def _report_source(self, text: str | None) -> None:
        if text is None:
            self.telemetry.errors.clear("source")
        else:
            self.telemetry.error("source", text)

    def _note(self, where: str, text: str) -> None:
        """An error for `/status`, and for the log when it is new."""
        if self.telemetry.error(where, text) == 1:
            log.warning("%s: %s", where, text)

    def _show(self, frame: ShownFrame) -> None:
        if self._server is not None:
            self._server.show(frame)
        if self._preview is not None:
            state = self._current.session.state if self._current is not None else State.WAITING
            self._preview.show(frame, f"{state}  {self.telemetry.avatar.read():.0f} avatar pictures/s  {self._driver}")

    def _save(self, person: Person) -> None:
        self._saved_at = time.monotonic()
        try:
            if person.learner is not None and person.learner.save():
                log.info("avatar saved: %s", person.path)
        except UserError as error:
            self._note("avatar", str(error))
            self.failure = self.failure or str(error)

    def _choose_background(self, text: str) -> None:
        """A viewer wants the head over something else (on the network thread).  UserError if there is no such."""
        self._backgrounds.choose(text)
        self._moved.set()

    # ---- what it says of itself

    def background(self) -> dict[str, Any]:
        """What `GET /background` shows."""
        return {"background": str(self._backgrounds.chosen), "choices": self._backgrounds.choices}

    def status(self) -> dict[str, Any]:
        """What `GET /status` shows; figures that are not known yet are None."""
        person, server, telemetry = self._current, self._server, self.telemetry
        learner = person.learner if person is not None else None
        score = learner.score if learner is not None else None
        stream = server.stream_stats() if server is not None else None
        latency = stream.latency_ms if stream is not None and stream.latency_ms is not None else telemetry.latency_ms()
        return {
            "state": str(person.session.state if person is not None else State.WAITING),
            "fps": stream.fps if stream is not None else 0.0,
            "avatar_fps": round(telemetry.avatar.read(), 1),
            "psnr_db": round(score.avatar_db, 2) if score is not None else None,
            "mesh_psnr_db": round(score.mesh_db, 2) if score is not None else None,
            "latency_ms": round(latency, 1) if latency is not None else None,
            "viewers": server.viewers if server is not None else 0,
            "driver": self._driver,
            "drops": telemetry.drops(),
            "errors": telemetry.errors.lines(),
            "source": person.name if person is not None else self.options.source,
            "camera_fps": round(telemetry.captured.read(), 1),
            "tracked_fps": round(telemetry.tracked.read(), 1),
            "steps": learner.trainer.steps if learner is not None else 0,
            "steps_per_second": round(telemetry.trained.read(), 1),
            "render_px": self._display.avatar.side,
            "background": str(self._backgrounds.chosen),
            "torso": learner is not None and learner.torso is not None and learner.torso.holds,
            "avatar": str(person.path) if person is not None else None,
            "head": {"name": self._head.name, "sha256": self._head.sha256, "basis": self._head.basis},
            "zmq": self._zmq.address if self._zmq is not None else None,
            "seconds": round(time.monotonic() - telemetry.started, 1),
        }
