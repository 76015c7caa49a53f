"""The port: how many connections it takes, and how long they may dawdle."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web

CONNECTIONS: Final = 256
"""Open at once; the next one is closed unheard."""
HANDSHAKE_S: Final = 10.0
IDLE_S: Final = 15.0
"""Seconds that a connection may be open without a complete request."""


async def serve(app: web.Application, listener: socket.socket, context: ssl.SSLContext | None) -> web.AppRunner:
    """Answer on ``listener`` from now on; the `cleanup` of the result ends it."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=IDLE_S)
    await runner.setup()
    server = runner.server
    assert server is not None

    def protocol() -> asyncio.Protocol:
        return server() if len(server.connections) < CONNECTIONS else _Full()

    site = _Site(runner, protocol, listener, context)
    await site.start()
    return runner


class _Full(asyncio.Protocol):
    """Hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Site(web.BaseSite):
    """A socket whose connections are counted; aiohttp's own takes any number, and waits long for a handshake."""

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
