"""Receivers of head states from other programs during a call, and the publisher of the tracked head states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from insta_runtime.errors import UserError
from insta_runtime.head import fingerprint
from telepresence.drivers.arbiter import DriverId
from telepresence.drivers.expression_transfer import ExpressionStats, LiveTransfer
from telepresence.drivers.udp_bridge import BRIDGES, UdpBridge
from telepresence.drivers.zeromq import ZeroMqDriver
from telepresence.runtime.clock import now_ns
from telepresence.runtime.ownership import any_thread, called_by, owned_by

if TYPE_CHECKING:
    import threading

    from insta_runtime.head import HeadModel
    from insta_runtime.types import Float32, HeadState
    from telepresence.config import RunConfig
    from telepresence.drivers.curve import CurveKeys
    from telepresence.drivers.driver_settings import DriverSettings
    from telepresence.drivers.receiver import StateReceiver
    from telepresence.drivers.state_publisher import StatePublisher
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.runtime.worker import Worker

TAKE_STATES: Final = 2000
"""Approximate number of states sampled from a take (a recorded track) for its subject's expression statistics."""


@owned_by("main")
class DriverReceivers:
    """The configured receivers of head states, by driver, and the publisher of tracked states.

    The attributes never change after construction, so that every thread may read them.

    Attributes:
        receivers: receiver of each driver ("zmq", "take", ...); empty if the call receives no head states.
    """

    def __init__(
        self,
        receivers: Mapping[DriverId, StateReceiver],
        transfers: Sequence[LiveTransfer] = (),
        publisher: StatePublisher | None = None,
    ) -> None:
        """``transfers`` map received states to the avatar's range of expressions; ``publisher`` may be None."""
        self.receivers = receivers
        self._transfers, self._publisher = transfers, publisher

    def start(self) -> None:
        """Open the addresses and start receiving.  UserError if one cannot be opened; call `stop` in that case, too."""
        for receiver in self.receivers.values():
            receiver.start()
        if self._publisher is not None:
            self._publisher.start()

    def stop(self) -> None:
        """Stop receiving and publishing; may be called twice."""
        for receiver in self.receivers.values():
            receiver.stop()
        if self._publisher is not None:
            self._publisher.stop()

    @property
    @any_thread
    def workers(self) -> list[Worker]:
        """Worker threads of the receivers."""
        return [receiver.worker for receiver in self.receivers.values()]

    @property
    @any_thread
    def zmq_address(self) -> str | None:
        """Address at which head parameters are received over ZeroMQ; None without that receiver."""
        receiver = self.receivers.get("zmq")
        return receiver.address if receiver is not None else None

    @called_by("track")
    def publish(self, state: HeadState, shape: Float32 | None) -> None:
        """Publish a tracked state, and use it to fill in parameters that later ZeroMQ messages leave out.

        ``shape`` (S,) is the identity code of the subject; None while it is unknown.
        """
        for receiver in self.receivers.values():
            if isinstance(receiver, ZeroMqDriver):
                receiver.set_base(state)
        if self._publisher is not None:
            self._publisher.send(state, fingerprint(shape) if shape is not None else None)

    @any_thread
    def recalibrate(self) -> None:
        """Discard the neutral faces estimated from received head states, so that they are estimated again."""
        for transfer in self._transfers:
            transfer.reset()

    @any_thread
    def status(self) -> dict[str, Any]:
        """State of each receiver and of the publisher, for ``drivers`` of `/status`."""
        now = now_ns()
        found: dict[str, Any] = {name: receiver.report(now) for name, receiver in self.receivers.items()}
        if self._publisher is not None:
            found["publisher"] = {"address": self._publisher.address, "sent": self._publisher.sent}
        return found


def open_receivers(
    run: RunConfig,
    settings: DriverSettings,
    head: HeadModel,
    *,
    telemetry: Telemetry,
    new_state: threading.Event,
    expression_stats: Callable[[], tuple[str, ExpressionStats] | None],
) -> DriverReceivers:
    """Create the configured receivers and the publisher; `DriverReceivers.start` starts them.

    ``telemetry`` receives a report of each rejected message, ``new_state`` is set with every accepted state, and
    ``expression_stats`` returns the avatar's fingerprint and expression statistics, or None while unknown.
    UserError if an address, a key or a take is invalid.
    """
    keys: CurveKeys | None = None
    if settings.keys:
        from telepresence.drivers.curve import CurveKeys

        keys = CurveKeys(Path(settings.keys).expanduser())
    receivers: dict[DriverId, StateReceiver] = {}
    transfers: list[LiveTransfer] = []

    def new_transfer() -> LiveTransfer:
        transfers.append(LiveTransfer(head, expression_stats))
        return transfers[-1]

    def report_to(where: str) -> Callable[[str], None]:
        return lambda text: telemetry.report(where, text)

    for name, address in (("zmq", run.zmq), ("subscription", settings.subscribe)):
        if address:
            receivers[cast(DriverId, name)] = ZeroMqDriver(
                address,
                basis=head.basis,
                head_sha256=head.sha256,
                expressions=len(head.expression_names),
                on_refused=report_to(name),
                on_accepted=new_state.set,
                transfer=new_transfer(),
                keys=keys,
                subscribe=name == "subscription",
            )
    for name in BRIDGES:
        where = getattr(settings, name)
        if where:
            receivers[cast(DriverId, name)] = UdpBridge(
                name,
                where,
                head,
                on_refused=report_to(name),
                on_accepted=new_state.set,
                transfer=new_transfer(),
                only_from=settings.only_from,
            )
    if settings.take:
        receivers["take"] = _open_take(Path(settings.take).expanduser(), head, new_state, new_transfer())
    publisher = None
    if settings.publish:
        from telepresence.drivers.state_publisher import StatePublisher

        publisher = StatePublisher(settings.publish, head, keys)
    return DriverReceivers(receivers, transfers, publisher)


def _open_take(path: Path, head: HeadModel, new_state: threading.Event, transfer: LiveTransfer) -> StateReceiver:
    """Driver that plays the take at ``path``; UserError if it cannot be played with this head model."""
    from insta_runtime.tracked import read_take
    from telepresence.drivers.take_driver import TakeDriver, take_schedule

    take = read_take(path)
    if take.head_sha256 != head.sha256:
        raise UserError(f"{path} was tracked with another head model: track it with the --head of this call")
    states = [state for _, state in take_schedule(take)]
    if not states:
        raise UserError(f"{path} has no frame with a tracked face: track another video")
    subject = fingerprint(take.shape)
    transfer.preload(subject, states[:: 1 + len(states) // TAKE_STATES])
    return TakeDriver(take, subject, on_accepted=new_state.set, transfer=transfer)
