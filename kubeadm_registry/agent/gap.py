"""Measures for how long an address does not serve while it moves: a new TLS connection 50 times a second.

Run on a node with this source alone:

    python3 -I -c SOURCE ADDRESS PORT MARK PATIENCE

It begins when the file MARK is there, and ends when it is gone, or after PATIENCE seconds. Prints a JSON object: *gap*,
the longest time in seconds between two answers; *asked*, and *failed*, requests without an answer.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Optional

EVERY = 0.02  # seconds
DEADLINE = 3.0  # seconds: as long as a client waits that sends its SYN again, and then once more


async def ask(address: str, port: int, context: ssl.SSLContext) -> Optional[float]:
    """When the answer was there; None without one."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port, ssl=context), DEADLINE)
    except (OSError, asyncio.TimeoutError):
        return None
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        line = await asyncio.wait_for(reader.readline(), DEADLINE)
        return time.monotonic() if b" 200 " in line else None
    except (OSError, asyncio.TimeoutError):
        return None
    finally:
        writer.transport.abort()


async def measure(address: str, port: int, mark: Path, patience: float) -> dict[str, object]:
    """See above."""
    # What is served is not read: only whether somebody does.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + patience
    while not mark.exists() and time.monotonic() < end:
        await asyncio.sleep(EVERY)
    begin, requests = time.monotonic(), []
    while mark.exists() and time.monotonic() < end:
        requests.append(asyncio.ensure_future(ask(address, port, context)))
        await asyncio.sleep(EVERY)
    requests.append(asyncio.ensure_future(ask(address, port, context)))
    answers = await asyncio.gather(*requests)
    times = sorted([begin, *(one for one in answers if one is not None)])
    gap = max((later - earlier for earlier, later in zip(times, times[1:])), default=None)
    return {"gap": gap, "asked": len(answers), "failed": answers.count(None)}


def main(arguments: list[str]) -> int:
    """See above."""
    address, port, mark, patience = arguments
    print(json.dumps(asyncio.run(measure(address, int(port), Path(mark), float(patience)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
