"""Looks 20 times a second whether the services of one server answer; runs in that server's network.

    python3 sampler.py ADDRESS PERIOD

Says "ready", ends when its standard input does, and then writes one JSON object a look: time (seconds since 1970) and
down, the names of the services that took no connection within 0.5 s, or whose answer was no, or none within 2 s.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

PATIENCE = 0.5
THOUGHT = 2.0


def health(connection: socket.socket) -> bool:
    """Whether Garage says that it can read and write: its own view, at the port of its admin API."""
    connection.settimeout(THOUGHT)
    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    return b" 200 " in connection.recv(64)


def answers(service: str, address: tuple[str, int]) -> bool:
    """Whether somebody takes the connection, and for the storage, what it says."""
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            return service != "quorum" or health(connection)
    except OSError:
        return False


def main() -> None:
    """Look until standard input ends."""
    address, period = sys.argv[1], float(sys.argv[2])
    services = {
        "proxy": (address, 5000),
        "frontend": ("127.0.0.1", 5001),
        "storage": (address, 3901),
        "quorum": ("127.0.0.1", 3903),
    }
    looks = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        due += period
        down = [name for name, where in services.items() if not answers(name, where)]
        looks.append({"time": time.time(), "down": down})
    for look in looks:
        sys.stdout.write(json.dumps(look) + "\n")


if __name__ == "__main__":
    main()
