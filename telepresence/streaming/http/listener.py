"""TCP listener of the HTTP server, with limits on the number of connections and on idle time."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web

MAX_CONNECTIONS: Final = 256
"""Maximum number of open HTTP connections; further ones are closed at once."""
HANDSHAKE_S: Final = 10.0
"""Maximum number of seconds for a TLS handshake."""
IDLE_S: Final = 15.0
"""Seconds after which a connection without a complete request is closed."""


async def serve(app: web.Application, listener: socket.socket, context: ssl.SSLContext | None) -> web.AppRunner:
    """Serve ``app`` on ``listener``, with TLS if ``context`` is given; ends with `cleanup` of the returned runner."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=IDLE_S)
    await runner.setup()
    server = runner.server
    assert server is not None

    def protocol() -> asyncio.Protocol:
        return server() if len(server.connections) < MAX_CONNECTIONS else _ClosingProtocol()

    site = _LimitedSite(runner, protocol, listener, context)
    await site.start()
    return runner


class _ClosingProtocol(asyncio.Protocol):
    """Closes a connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _LimitedSite(web.BaseSite):
    """aiohttp site with a protocol factory of ours and a short TLS handshake; aiohttp's own site allows neither."""

    def __init__(
        self,
        runner: web.AppRunner,
        protocol: Callable[[], asyncio.Protocol],
        listener: socket.socket,
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(runner, ssl_context=context)
        self._protocol, self._listener = protocol, listener

    @property
    def name(self) -> str:
        return "telepresence"

    async def start(self) -> None:
        await super().start()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=self._listener,
            ssl=self._ssl_context,
            ssl_handshake_timeout=HANDSHAKE_S if self._ssl_context is not None else None,
        )
