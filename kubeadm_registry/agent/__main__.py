"""``python3 agent.pyz --config FILE`` runs the agent; ``--check`` looks at the file, ``--close`` ends what one left.

``python3 agent.pyz --pulls DIRECTORY UNIT...`` is another program, in ``pulls``.

SIGTERM ends it, and the node gives up what it has. SIGHUP has it take up other keys for heartbeats, and the end of a
change of members; where its program or its configuration has changed in any other way, it is executed anew: the VIP
stays, since the process that keepalived relies on does not go away, but it begins without a vote, and a holder of the
lease loses that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

from kubeadm_registry import __version__
from kubeadm_registry.agent import pulls
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, ConfigError, Executor, Paths, load
from kubeadm_registry.agent.daemon import Daemon
from kubeadm_registry.agent.gate import acting, fence
from kubeadm_registry.agent.hands import DISARM, FENCE
from kubeadm_registry.agent.processes import Processes
from kubeadm_registry.agent.resident import stay
from kubeadm_registry.agent.timer import Timer

TAKES_OVER = "--takes-over"
PULLS = "--pulls"
BREATH = 2.0  # seconds from a start that fails to the next


def main(arguments: list[str]) -> int:
    """Run; the exit status is 0 after a stop or a good check, 1 when something failed, 2 when the file is wrong."""
    if arguments[:1] == [PULLS]:
        return pulls.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="agent", description="The node agent of kubeadm-registry.")
    parser.add_argument("--config", required=True, type=Path, help="JSON file")
    parser.add_argument("--check", action="store_true", help="only check the file")
    parser.add_argument("--close", action="store_true", help="shut the gate, end what could act under the lease, exit")
    parser.add_argument(TAKES_OVER, action="store_true", help="go on for the agent that was this process before")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    began = clock()
    try:
        config = load(options.config)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{options.config}: {error}\n")
        if options.close:
            abandon(Paths())
        elif not options.check:
            rest(began, Paths())
        return 2
    if options.check:
        return 0
    try:
        if options.close:
            return asyncio.run(close(config))
        asyncio.run(run(config, takes_over=options.takes_over, program=Path(sys.argv[0]), file=options.config))
        return 0
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        if not options.close:
            rest(began, config.paths)
        return 1


def rest(began: float, paths: Paths) -> None:
    """Before leaving so soon, wait, unfit: systemd starts the agent again at once, which would be a load of its own."""
    if "NOTIFY_SOCKET" in os.environ:
        with contextlib.suppress(OSError):
            Path(paths.fit).unlink(missing_ok=True)
        time.sleep(max(0.0, BREATH - (clock() - began)))


async def run(config: Config, *, takes_over: bool, program: Path, file: Path) -> None:
    """Work until SIGTERM or SIGINT; at SIGHUP the agent is executed anew, if *program* or *file* has changed so."""
    daemon = Daemon(config, takes_over=takes_over, program=program, file=file)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    gc.freeze()  # what was loaded stays; a full collection need not look at it again
    if flaw := stay():
        daemon.log("memory", f"this agent may be slow where memory is short: {flaw}", level=4)
    if await daemon.run():
        execute_anew()  # before the loop's end would wait for threads, which may wait for a slow disk


def execute_anew() -> None:
    """Become the agent as it is on disk now. A signal for the next reload waits until that one listens."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    words = os.fsdecode(Path("/proc/self/cmdline").read_bytes()).split("\0")[:-1]
    os.execv(sys.executable, [*(word for word in words if word != TAKES_OVER), TAKES_OVER])  # noqa: S606  no shell


async def close(config: Config) -> int:
    """Do what an agent does when it leaves, for one that could not: killed, crashed or hung."""
    with contextlib.suppress(OSError):
        Path(config.paths.fit).unlink(missing_ok=True)
    if not config.settings.leased:
        return 0
    names = ("local", *(peer.name for peer in config.peers)) if config.writer == "single" else ()
    text = "set server gate/open state maint"
    text += "".join(f";set server writer/{name} state maint" for name in names)
    for path in config.proxy.sockets:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.settimeout(0.1)
                door.connect(path)
                door.sendall(text.encode() + b"\n")
                door.recv(1024)
        except OSError:
            continue  # a HAProxy that does not answer passes on nothing, and the fence follows
    if not await fence(acting(config, Processes(config.frontend.unit)), FENCE):
        return 1
    if config.fence is None:
        return 0
    timer = Timer(config.fence, config.timings.timer, complain)
    return 0 if await timer.disarmed(DISARM) else 1


def complain(_: str, text: str) -> None:
    """Say what could not be done."""
    sys.stderr.write(f"{text}\n")


def abandon(paths: Paths) -> None:
    """Do the same without a file that can be read: usual paths and units, and the mark names the frontend's unit."""
    with contextlib.suppress(OSError):
        Path(paths.fit).unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError):
        if unit := Path(paths.mark).read_text(encoding="ascii").strip():
            Processes(unit).kill()  # its unit starts it again as a standby
    with contextlib.suppress(OSError):
        Processes(Executor().unit).kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
