"""Key files for ZeroMQ's CURVE security: encryption, and authentication of daemons and clients.

One folder holds the files, in the format of `zmq.auth`: ``daemon.key`` and ``daemon.key_secret`` are the daemon's key
pair, ``clients/*.key`` the public keys of the clients that may connect, and ``publisher.key`` the public key of the
daemon whose published states are received.
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


class CurveKeys:
    """CURVE keys of a daemon, read from ``folder``; if it has none, keys of the daemon and one client are generated.

    Raises UserError if the folder cannot be read or written, or if a key is invalid.  ``public`` and ``secret`` are the
    daemon's keys in Z85 encoding.
    """

    def __init__(self, folder: Path) -> None:
        import zmq

        if not zmq.has("curve"):
            raise UserError("this ZeroMQ was built without CURVE: install pyzmq's wheel, or unset drivers.keys")
        self.folder = folder
        try:
            if not (folder / "daemon.key_secret").exists():
                _make(folder)
        except OSError as error:
            raise UserError(
                f"cannot write keys to {folder}: {error.strerror}; choose another folder with drivers.keys"
            ) from None
        self.public, self.secret = load_key(folder / "daemon.key_secret")

    def configure_server(self, socket: zmq.Socket[bytes]) -> None:
        """Configure ``socket`` as a CURVE server; `start_authenticator` restricts it to clients with known keys."""
        socket.setsockopt(_zmq().CURVE_SERVER, 1)
        socket.setsockopt(_zmq().CURVE_SECRETKEY, self.secret)
        socket.setsockopt(_zmq().CURVE_PUBLICKEY, self.public)

    def start_authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """Start the thread that checks the keys of clients of ``context``'s sockets; its ``stop()`` ends it.

        UserError if the folder of the clients' public keys is missing.
        """
        from zmq.auth.thread import ThreadAuthenticator

        clients = self.folder / "clients"
        if not clients.is_dir():
            raise UserError(f"the folder {clients} is missing: create it with the public keys (*.key) of the clients")
        watch = ThreadAuthenticator(context)
        watch.start()
        watch.configure_curve(domain="*", location=clients)
        return watch

    def configure_subscriber(self, socket: zmq.Socket[bytes]) -> None:
        """Configure ``socket`` to connect only to the publisher whose key is in ``publisher.key``."""
        configure_client(socket, self.folder / "publisher.key", self.folder / "daemon.key_secret")


def configure_client(socket: zmq.Socket[bytes], server: Path, own: Path) -> None:
    """Configure ``socket`` as a CURVE client: ``server`` is the server's public key file, ``own`` the client's file."""
    socket.setsockopt(_zmq().CURVE_SERVERKEY, load_key(server, secret=False)[0])
    public, secret = load_key(own)
    socket.setsockopt(_zmq().CURVE_PUBLICKEY, public)
    socket.setsockopt(_zmq().CURVE_SECRETKEY, secret)


def load_key(path: Path, *, secret: bool = True) -> tuple[bytes, bytes]:
    """Read a key file; returns (public key, secret key) in Z85.  Raises UserError if a key is missing or invalid.

    With ``secret`` False the secret key may be missing and is then empty.
    """
    from zmq.auth import load_certificate

    try:
        public, hidden = load_certificate(path)
    except (OSError, ValueError):
        raise UserError(f"{path} is not a CURVE key file of ZeroMQ: see docs/protocols-zeromq.md") from None
    from zmq.utils import z85

    for key in (public, hidden or b"") if secret else (public,):
        try:
            valid = len(z85.decode(key)) == 32
        except (ValueError, KeyError, IndexError):
            valid = False
        if not valid:
            raise UserError(
                f"{path} contains no {'secret' if secret else 'public'} key of 40 characters: generate it again"
            )
    return public, hidden or b""


def _make(folder: Path) -> None:
    from zmq.auth import create_certificates

    clients = folder / "clients"
    clients.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for place, name in ((folder, "daemon"), (clients, "client")):
        create_certificates(place, name)
        (place / f"{name}.key_secret").chmod(0o600)
    log.info("CURVE keys created in %s: copy clients/client.key_secret and daemon.key to the client", folder)


def _zmq() -> Any:
    import zmq

    return zmq
