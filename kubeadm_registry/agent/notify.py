"""Tells systemd how the agent is (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> bool:
    """Send *text*, for example ``READY=1``, to systemd. False if it must be said again; True too if nobody asked."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
        try:
            out.sendto(text.encode(), address)
        except OSError:  # systemd is busy or gone
            return False
    return True
