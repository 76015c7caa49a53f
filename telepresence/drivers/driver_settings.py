"""Settings of the drivers: sources of head states besides the tracker, and publishing of tracked states."""

from __future__ import annotations

from dataclasses import dataclass

from insta_runtime.config import setting
from insta_runtime.errors import UserError


@dataclass(frozen=True)
class DriverSettings:
    """Settings of the drivers; an empty address disables a driver.  The ZeroMQ address itself is ``run.zmq``."""

    livelink: str = setting("", "UDP address that receives Live Link Face: on (127.0.0.1:11111), PORT or HOST:PORT")
    vmc: str = setting("", "UDP address that receives VMC, as from VSeeFace: on (127.0.0.1:39539), PORT or HOST:PORT")
    openseeface: str = setting("", "UDP address that receives OpenSeeFace: on (127.0.0.1:11573), PORT or HOST:PORT")
    only_from: str = setting("", "address of the only machine whose UDP packets are accepted; required off loopback")
    take: str = setting("", "recorded take, or its tracked folder, that is played in a loop and moves the face")
    subscribe: str = setting("", "ZeroMQ address of a daemon whose published states move the face")
    publish: str = setting("", "ZeroMQ address at which tracked states are published")
    keys: str = setting("", "folder of CURVE keys, generated if missing; encrypts ZeroMQ and allows other machines")
    fade_s: float = setting(0.4, "duration of the handover from one driver to the next", unit="s", ge=0.0, le=5.0)
    idle: bool = setting(True, "breathe and blink while no driver moves a face that was moved before")

    def check(self) -> None:
        """Check the addresses, and the settings that depend on each other.  Raises UserError if one is invalid."""
        from telepresence.drivers.udp_bridge import BRIDGES, check_endpoint
        from telepresence.drivers.zeromq_address import check_address, check_target

        for name in BRIDGES:
            check_endpoint(name, getattr(self, name), self.only_from)
        for address in (self.publish, self.subscribe):
            if address:
                check_address(address, allow_remote=bool(self.keys))
        if self.subscribe:
            check_target(self.subscribe)


NAMES = ("livelink", "vmc", "openseeface", "take")
"""Names that ``--driver`` accepts."""


def parse_drivers(texts: list[str]) -> dict[str, str]:
    """Convert the options ``--driver NAME[=ADDRESS]`` to settings, by full name (``drivers.NAME``).

    Raises UserError for an unknown driver, or for a take without a path.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, where = text.partition("=")
        if name not in NAMES:
            raise UserError(f"unknown driver '{name}': use one of {', '.join(NAMES)}")
        if name == "take" and not where:
            raise UserError("--driver take needs a recording: --driver take=take.npz")
        found[f"drivers.{name}"] = where or "on"
    return found
