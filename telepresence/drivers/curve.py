"""Keys for ZeroMQ's CURVE: who may move the face from another machine, and who may listen.

A folder holds them, as files that `zmq.auth` writes: ``daemon.key`` and ``daemon.key_secret`` are the daemon's own,
``clients/*.key`` are those of everybody who may come, ``publisher.key`` is that of the daemon that is subscribed to.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    import zmq
    from zmq.auth.thread import ThreadAuthenticator

log = logging.getLogger("telepresence")


class Keys:
    """The keys in ``folder``, which is made, with the daemon's and a first client's, where there is none.

    UserError if it cannot be read or written, or does not hold what it should.
    """

    def __init__(self, folder: Path) -> None:
        import zmq

        if not zmq.has("curve"):
            raise UserError("this ZeroMQ has no CURVE: install pyzmq's wheel, or do without --set drivers.keys")
        self.folder = folder
        try:
            if not (folder / "daemon.key_secret").exists():
                _make(folder)
        except OSError as error:
            raise UserError(f"cannot make keys in {folder}: {error.strerror}") from None
        self.public, self.secret = load(folder / "daemon.key_secret")

    def serve(self, socket: zmq.Socket[bytes]) -> None:
        """Let only those in who have one of the clients' keys; its context needs `authenticate`."""
        socket.setsockopt(_zmq().CURVE_SERVER, 1)
        socket.setsockopt(_zmq().CURVE_SECRETKEY, self.secret)
        socket.setsockopt(_zmq().CURVE_PUBLICKEY, self.public)

    def authenticate(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """Watch over the doors of ``context`` until it is stopped."""
        from zmq.auth.thread import ThreadAuthenticator

        clients = self.folder / "clients"
        if not clients.is_dir():
            raise UserError(f"there is no folder {clients}: put the public keys (*.key) there of those who may come")
        watch = ThreadAuthenticator(context)
        watch.start()
        watch.configure_curve(domain="*", location=clients)
        return watch

    def subscribe(self, socket: zmq.Socket[bytes]) -> None:
        """Talk to the publisher whose key is here, and to nobody else."""
        join(socket, self.folder / "publisher.key", self.folder / "daemon.key_secret")


def join(socket: zmq.Socket[bytes], server: Path, own: Path) -> None:
    """Let ``socket`` talk to whoever has the secret to the public key in ``server``, as who has the one in ``own``."""
    socket.setsockopt(_zmq().CURVE_SERVERKEY, load(server, secret=False)[0])
    public, secret = load(own)
    socket.setsockopt(_zmq().CURVE_PUBLICKEY, public)
    socket.setsockopt(_zmq().CURVE_SECRETKEY, secret)


def load(path: Path, *, secret: bool = True) -> tuple[bytes, bytes]:
    """Public and secret key of a file; the latter is empty where ``secret`` is not asked for.  UserError."""
    from zmq.auth import load_certificate

    try:
        public, hidden = load_certificate(path)
    except (OSError, ValueError):
        raise UserError(f"{path} is not a key of ZeroMQ's CURVE: see docs/protocols-zeromq.md") from None
    from zmq.utils import z85

    for key in (public, hidden or b"") if secret else (public,):
        try:
            sound = len(z85.decode(key)) == 32
        except (ValueError, KeyError, IndexError):
            sound = False
        if not sound:
            raise UserError(f"{path} does not hold {'a secret' if secret else 'a public'} key of 40 characters")
    return public, hidden or b""


def _make(folder: Path) -> None:
    from zmq.auth import create_certificates

    clients = folder / "clients"
    clients.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for place, name in ((folder, "daemon"), (clients, "client")):
        create_certificates(place, name)
        (place / f"{name}.key_secret").chmod(0o600)
    log.info("keys made in %s: give clients/client.key_secret and daemon.key to who shall move the face", folder)


def _zmq() -> Any:
    import zmq

    return zmq
