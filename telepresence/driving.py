"""Who drives: the tracker of whoever is before the camera, or head parameters that arrive from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from telepresence.clock import now_ns
from telepresence.drivers.arbiter import FRESH_S, Drive, Driver, choose
from telepresence.drivers.transfer import Habits, LiveTransfer
from telepresence.drivers.zeromq import ZeroMqDriver

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from insta_runtime.types import Camera, HeadState
    from telepresence.config import RunConfig
    from telepresence.frames import Pose


class Driving:
    """Runs what receives parameters, decides who moves the face, and says what it does.

    The supervisor calls `decide`, the tracking thread `follow`, the render thread `pose`; ``driver`` is whom the last
    decision named, for anybody to read.
    """

    def __init__(
        self,
        run: RunConfig,
        head: HeadModel,
        *,
        note: Callable[[str, str], None],
        moved: Callable[[], None],
        usual: Callable[[], tuple[str, Habits] | None],
        alone: bool = False,
    ) -> None:
        """``alone``: nothing is received from anywhere, the tracker drives.

        ``note`` hears what was refused, and where; ``moved`` that there is a new state, on the thread that received it.
        ``usual`` gives whose avatar there is and what is usual for them.  UserError if an address cannot be.
        """
        self.driver: Driver = "tracker"
        self._drive = cast(Drive, run.drive)
        self._zmq: ZeroMqDriver | None = None
        if not alone:
            self._zmq = ZeroMqDriver(
                run.zmq,
                basis=head.basis,
                head_sha256=head.sha256,
                expressions=len(head.expression_names),
                refused=lambda text: note("zmq", text),
                accepted=moved,
                transfer=LiveTransfer(head, usual),
            )

    def start(self) -> None:
        """Begin to receive.  UserError if an address cannot be had."""
        if self._zmq is not None:
            self._zmq.start()

    def stop(self) -> None:
        """Receive no more."""
        if self._zmq is not None:
            self._zmq.stop()

    @property
    def address(self) -> str | None:
        """Where head parameters are received over ZeroMQ."""
        return self._zmq.address if self._zmq is not None else None

    def decide(self) -> bool:
        """Choose the driver of this moment; whether parameters from elsewhere move the face now."""
        age = self._zmq.age(now_ns()) if self._zmq is not None else None
        self.driver = choose(self._drive, age)
        return self.driver == "zmq" and age is not None and age < FRESH_S

    def follow(self, state: HeadState) -> None:
        """The tracker sees ``state``: what no message has given yet starts from there."""
        if self._zmq is not None:
            self._zmq.follow(state)

    def pose(self, tracked: Pose | None) -> tuple[HeadState | None, Camera | None]:
        """What the face does, and the camera that sees it, given the pose ``tracked``.

        The camera is None where it is that with which the avatar was learned.
        """
        driven = self._zmq.newest() if self.driver == "zmq" and self._zmq is not None else None
        state = driven.state if driven is not None else tracked.state if tracked is not None else None
        if tracked is None or (driven is not None and driven.transferred):
            return state, None
        return state, tracked.camera
