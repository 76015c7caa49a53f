"""Who drives: the tracker of whoever is before the camera, head states that arrive from elsewhere, or nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle
from insta_runtime.head import fingerprint
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.drivers.arbiter import Drive, Driver, choose
from telepresence.drivers.blend import blend, blend_cameras
from telepresence.drivers.idle import Idle
from telepresence.drivers.receiver import Driven, Inlet
from telepresence.drivers.transfer import Habits, LiveTransfer
from telepresence.drivers.udp import BRIDGES, Bridge
from telepresence.drivers.zeromq import ZeroMqDriver
from telepresence.runtime.clock import Ratekeeper, now_ns

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.config import RunConfig
    from telepresence.drivers.curve import Keys
    from telepresence.drivers.publisher import StatePublisher
    from telepresence.drivers.settings import DriverSettings
    from telepresence.runtime.frames import Pose
    from telepresence.runtime.worker import Worker

RELAX_S: Final = 1.5
"""A face that nobody moves any more comes to rest in this time."""
STEP_S: Final = 0.04
"""While a face idles, or is handed over, there is something new to show so often."""
KNOWN: Final = 2000
"""States of a take from which it is known what is usual for its person."""
LEAD: Final = 0.25
"""A state older than this part of the time between messages is worth waiting for the next one."""


class Driving:
    """Runs what receives parameters, decides who moves the face, and says what it does.

    The supervisor calls `decide`, the tracking thread `follow`, the render thread `wait` and `pose`.

    Attributes:
        driver: who moves the face, for anybody to read.
        idles: whether a face that nobody moves any more goes on to breathe and blink.
    """

    def __init__(
        self,
        run: RunConfig,
        drivers: DriverSettings,
        head: HeadModel,
        *,
        note: Callable[[str, str], None],
        moved: Callable[[], None],
        usual: Callable[[], tuple[str, Habits] | None],
        waited: Callable[[float], None] = lambda _seconds: None,
        alone: bool = False,
    ) -> None:
        """``alone``: nothing is received from anywhere and nothing idles, the tracker drives.

        ``note`` hears what was refused, and where; ``moved`` that there is a new state, on the thread that received it;
        ``waited`` how long each state that is drawn had waited since it came, or since the picture before was done.
        ``usual`` gives whose avatar there is and what is usual for them.  UserError if an address, a key or a take
        cannot be.
        """
        self.driver: Driver = "tracker"
        self._drive: Drive = "tracker" if alone else cast(Drive, run.drive)
        self._settings, self._head, self._usual = drivers, head, usual
        self.idles = drivers.idle and not alone
        self._waited = waited
        self._inlets: dict[Driver, Inlet] = {}
        self._transfers: list[LiveTransfer] = []
        self._publisher: StatePublisher | None = None
        self._seen_ns: int | None = None  # when the tracker saw a face last
        self._drawn: tuple[str, int] | None = None  # the message whose waiting was counted last
        self._free_ns = 0  # when the picture before was done
        # What was shown last and of whom, from what, and since when it becomes what the driver wants: render thread.
        self._last: tuple[HeadState, Camera | None] | None = None
        self._who: object = None
        self._moving: Driver = "tracker"
        self._from: tuple[HeadState, Camera | None] | None = None
        self._since, self._fading = 0.0, False
        self._rest: tuple[HeadState, Camera | None, Idle, float] | None = None
        if not alone:
            self._open(run, note, moved)

    def _open(self, run: RunConfig, note: Callable[[str, str], None], moved: Callable[[], None]) -> None:
        settings, head = self._settings, self._head
        keys: Keys | None = None
        if settings.keys:
            from telepresence.drivers.curve import Keys

            keys = Keys(Path(settings.keys).expanduser())

        def transfer() -> LiveTransfer:
            self._transfers.append(LiveTransfer(head, self._usual))
            return self._transfers[-1]

        def complain(where: str) -> Callable[[str], None]:
            return lambda text: note(where, text)

        for name, address in (("zmq", run.zmq), ("subscription", settings.subscribe)):
            if address:
                self._inlets[cast(Driver, name)] = ZeroMqDriver(
                    address,
                    basis=head.basis,
                    head_sha256=head.sha256,
                    expressions=len(head.expression_names),
                    refused=complain(name),
                    accepted=moved,
                    transfer=transfer(),
                    keys=keys,
                    subscribe=name == "subscription",
                )
        for name in BRIDGES:
            where = getattr(settings, name)
            if where:
                self._inlets[cast(Driver, name)] = Bridge(
                    name,
                    where,
                    head,
                    refused=complain(name),
                    accepted=moved,
                    transfer=transfer(),
                    only_from=settings.only_from,
                )
        if settings.take:
            self._inlets["take"] = self._take(Path(settings.take).expanduser(), moved, transfer())
        if settings.publish:
            from telepresence.drivers.publisher import StatePublisher

            self._publisher = StatePublisher(settings.publish, head, keys)
        if self._drive not in ("auto", "tracker", *self._inlets):
            raise UserError(f"--drive {self._drive} needs that driver: give drivers.{self._drive}, or --driver")

    def _take(self, path: Path, moved: Callable[[], None], transfer: LiveTransfer) -> Inlet:
        from insta_runtime.tracked import read_take
        from telepresence.drivers.take import TakeDriver, schedule

        take = read_take(path)
        if take.head_sha256 != self._head.sha256:
            raise UserError(f"{path} was tracked with another head model: track it with --head as this call has it")
        states = [state for _, state in schedule(take)]
        if not states:
            raise UserError(f"{path} holds no frame in which a face was tracked: track another video")
        person = fingerprint(take.shape)
        transfer.meet(person, states[:: 1 + len(states) // KNOWN])
        return TakeDriver(take, person, accepted=moved, transfer=transfer)

    def start(self) -> None:
        """Begin to receive.  UserError if an address cannot be had; call `stop` then, too."""
        for inlet in self._inlets.values():
            inlet.start()
        if self._publisher is not None:
            self._publisher.start()

    def stop(self) -> None:
        """Receive and send no more; may be called twice."""
        for inlet in self._inlets.values():
            inlet.stop()
        if self._publisher is not None:
            self._publisher.stop()

    # ---- what others ask and tell

    @property
    def workers(self) -> list[Worker]:
        """The threads that receive."""
        return [inlet.worker for inlet in self._inlets.values()]

    @property
    def address(self) -> str | None:
        """Where head parameters are received over ZeroMQ."""
        inlet = self._inlets.get("zmq")
        return inlet.address if inlet is not None else None

    @property
    def external(self) -> bool:
        """Whether somebody other than the tracker moves the face now."""
        return self.driver in self._inlets

    def decide(self) -> bool:
        """Whether parameters from elsewhere move the face now."""
        chosen = self._choose(now_ns())
        if chosen != "idle":
            self.driver = chosen
        return chosen in self._inlets

    def follow(self, state: HeadState, shape: Float32 | None = None) -> None:
        """The tracker sees ``state`` of who has this identity code, if it is known.

        What no message gives is as there, and subscribers hear of it.
        """
        self._seen_ns = now_ns()
        for inlet in self._inlets.values():
            if isinstance(inlet, ZeroMqDriver):
                inlet.follow(state)
        if self._publisher is not None:
            self._publisher.send(state, fingerprint(shape) if shape is not None else None)

    def recalibrate(self) -> None:
        """Take whoever drives from outside for somebody new: their neutral face is learned again."""
        for transfer in self._transfers:
            transfer.forget()

    def report(self) -> dict[str, Any]:
        """What `/status` says of those who may drive."""
        now = now_ns()
        found: dict[str, Any] = {name: inlet.report(now) for name, inlet in self._inlets.items()}
        if self._publisher is not None:
            found["publisher"] = {"address": self._publisher.address, "sent": self._publisher.sent}
        return found

    # ---- the render thread

    def wait(self, moved: threading.Event, still_s: float, pace: Ratekeeper, stop: threading.Event) -> None:
        """Until it is time to draw, and there is something: a new state, or the next step of what moves by itself.

        ``moved`` is set with every new state and is cleared here; nothing to draw takes ``still_s``.  Where states come
        faster than pictures, the newest may have grown old in keeping ``pace``: then the next one is awaited, so that
        pictures fall in step with states.
        """
        self._free_ns = now_ns()
        pace.wait(stop)
        inlet = self._inlets.get(self._moving)
        interval = inlet.interval() if inlet is not None else None
        age = inlet.age(now_ns()) if inlet is not None else None
        if interval is not None and age is not None and LEAD * interval < age < interval < pace.period:
            moved.clear()
            moved.wait(interval)
        else:
            moved.wait(min(still_s, STEP_S) if self._fading or self._moving == "idle" else still_s)
        moved.clear()

    def pose(
        self, tracked: Pose | None, learned: Camera | None, who: object = None
    ) -> tuple[HeadState | None, Camera | None]:
        """What the face does, and the camera that sees it.

        ``tracked`` is what the tracker saw last, of ``who``; ``learned`` the camera that the avatar was learned with.
        A new driver takes over gently, somebody new before the camera does not.
        """
        now = now_ns()
        if who is not self._who:
            self._who, self._last, self._rest = who, None, None
        chosen = self._choose(now)
        if chosen == "idle" and not (self.idles and (self._last is not None or self._drive in self._inlets)):
            chosen = cast(Driver, self._drive) if self._drive in self._inlets else "tracker"
        if chosen != self._moving:
            self._from, self._since = self._last, now * 1e-9
            self._moving, self._rest = chosen, None
        self.driver = chosen
        state, camera = self._wanted(tracked, learned, now)
        if state is None:
            self._fading = False
            return None, camera
        part = self._part(now)
        self._fading = self._from is not None and part < 1.0
        if self._from is not None and self._fading:
            start, seen_by = self._from
            state = blend(start, state, part).at(now)
            if seen_by is not None and camera is not None:
                camera = blend_cameras(seen_by, camera, part)
        else:
            self._from = None
        self._last = (state, camera)
        return state, camera

    def _choose(self, now: int) -> Driver:
        seen_s = (now - self._seen_ns) / 1e9 if self._seen_ns is not None else None
        return choose(self._drive, {name: inlet.age(now) for name, inlet in self._inlets.items()}, seen_s)

    def _part(self, now: int) -> float:
        length = RELAX_S if self._moving == "idle" else self._settings.fade_s
        return smoothstep((now * 1e-9 - self._since) / length) if length > 0.0 else 1.0

    def _wanted(self, tracked: Pose | None, learned: Camera | None, now: int) -> tuple[HeadState | None, Camera | None]:
        """What the driver of this moment wants."""
        inlet = self._inlets.get(self._moving)
        if inlet is not None:
            driven = inlet.newest()
            if driven is None:
                return None, learned
            self._count(self._moving, driven, now)
            return driven.state, learned if driven.transferred or tracked is None else tracked.camera
        if self._moving == "idle":
            return self._resting(learned, now)
        return (tracked.state, tracked.camera) if tracked is not None else (None, learned)

    def _count(self, name: str, driven: Driven, now: int) -> None:
        if (name, driven.seq) != self._drawn:
            self._drawn = name, driven.seq
            self._waited((now - max(driven.arrived_ns, self._free_ns)) / 1e9)

    def _resting(self, learned: Camera | None, now: int) -> tuple[HeadState | None, Camera | None]:
        rest: tuple[HeadState, Camera | None]
        if self._rest is None:
            usual = self._usual()
            if usual is not None and learned is not None:
                rest = _neutral(usual[1]), learned
            elif self._last is not None:
                rest = self._last
            else:
                return None, learned
            self._rest = *rest, Idle(self._head.basis, self._head.expression_names), now * 1e-9
        neutral, camera, idle, since = self._rest
        return idle.state(neutral, now * 1e-9 - since).at(now), camera


def _neutral(habits: Habits) -> HeadState:
    return HeadState(
        expression=habits.expression,
        jaw_pose=habits.jaw_pose,
        neck_pose=habits.neck_pose,
        eye_pose=habits.eye_pose,
        eyelids=habits.eyelids,
        rotation=axis_angle(habits.rotation).astype("float32"),
        translation=habits.translation,
    )
