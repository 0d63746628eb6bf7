"""A proxy that makes a server lie further away: python -m tests.bench.far PORT TARGET-PORT MILLISECONDS.

A connection takes a round trip to begin, and what goes either way arrives half a round trip later, however much of it
there is. It stands for tc-netem, which not every kernel has. It prints a line when it takes connections.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import sys
from typing import cast

HOST = "127.0.0.1"


class Side(asyncio.Protocol):
    """One side of a connection: what comes here goes to the *other* side, *delay* seconds later."""

    def __init__(self, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._pieces: collections.deque[bytes | None] = collections.deque()
        self.opened = 0.0
        """When whoever is there knows of the connection."""
        self.other: Side
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes | None) -> None:
        """Send it later; the end (None) as well."""
        self._pieces.append(data)
        self._loop.call_at(max(self._loop.time(), self.opened) + self._delay, self._deliver)

    def eof_received(self) -> bool:
        """Send the end later, and stay open for what comes back."""
        self.data_received(None)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """End the other side as well."""
        self._loop.call_later(self._delay, self.other.transport.close)

    def _deliver(self) -> None:
        piece, there = self._pieces.popleft(), self.other.transport
        if there.is_closing():
            return
        if piece is None:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                there.write_eof()
        else:
            there.write(piece)


class Near(Side):
    """The client's side, which opens the server's."""

    def __init__(self, target: int, delay: float) -> None:
        super().__init__(delay)
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the server before anything is read."""
        super().connection_made(transport)
        self.opened = self._loop.time() + 2 * self._delay
        self.transport.pause_reading()
        self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        there = Side(self._delay)
        there.other = self
        self.other = there
        try:
            await self._loop.create_connection(lambda: there, HOST, self._target)
        except OSError:
            self.transport.abort()
            return
        self.transport.resume_reading()


async def serve(port: int, target: int, delay: float) -> None:
    """Take connections at *port* and carry them to *target*, *delay* seconds each way."""
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Near(target, delay), HOST, port, backlog=1000) as server:
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2000))
