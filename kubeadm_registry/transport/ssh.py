"""A host over SSH: one connection, in it one long-lived shell."""

from __future__ import annotations

import contextlib
import secrets
import select
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import paramiko

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Transport
from kubeadm_registry.transport.process import NotStarted, Stream, lost, start_argv, started
from kubeadm_registry.transport.shell import Shell
from kubeadm_registry.transport.ssh_config import Settings, SshTarget
from kubeadm_registry.transport.ssh_forward import Forwarder
from kubeadm_registry.transport.ssh_login import UNREACHABLE, end, login, sending

__all__ = ["UNREACHABLE", "SshTarget", "connect"]

#: The user who needs no sudo.
ROOT = "root"
#: In English, whatever language the user has on the host: _REFUSALS tells by its words why it refuses.
_SUDO = ("env", "LC_ALL=C", "sudo")
#: What a host says to one who logged in and may run nothing, the code for it, and what to do.
_REFUSALS = (
    (
        ("password has expired", "password is expired", "change your password", "Password change required"),
        "PasswordExpired",
        "log in once and change the password: {ssh}; or disable its expiry: chage -M -1 {user}",
    ),
    (
        ("account is currently not available", "account has expired"),
        "ShellForbidden",
        "set a login shell for user {user} on the host (usermod --shell /bin/sh {user}), or use another user",
    ),
    (
        ("must have a tty",),
        "SudoNeedsTerminal",
        "remove `Defaults requiretty` from sudoers on the host, or add: Defaults:{user} !requiretty",
    ),
)
#: Seconds in which the host must open a channel.
CHANNEL_TIMEOUT = 15
#: Seconds in which sshd counts a session no more that has ended: it does so when it has seen the process end.
FREE_TIMEOUT = 3.0


def connect(target: SshTarget) -> Transport:
    """Log in to *target* and start its shell as root.

    Raises ConnectionFailed; its ``code`` says why, see docs/ssh.md. A lost connection stays lost: whoever wants another
    one calls ``connect`` again.
    """
    ends: list[Callable[[], None]] = []
    try:
        transport, settings = login(target, ends)
        return _Ssh(transport, target, settings, ends)
    except BaseException:
        end(ends)
        raise


class _Ssh:
    """The Transport over an SSH connection."""

    def __init__(
        self, transport: paramiko.Transport, target: SshTarget, settings: Settings, ends: list[Callable[[], None]]
    ) -> None:
        self._transport = transport
        self._target = target
        self._settings = settings
        self._ends = ends
        self._forwarders: dict[tuple[str, int], Forwarder] = {}
        self._lock = threading.Lock()
        self._began = False
        self._shell = Shell(self._spawn, target.name, by_ssh=True)
        self._began = True
        if self._shell.uid != 0:
            raise ConnectionFailed(
                f"user {settings.user} has user id {self._shell.uid} on the host, not 0",
                host=target.name,
                hint="log in as root, or as a user who can use sudo",
                code="SudoNeeded",
            )
        # Uploads need another one beside the shell: better known now than in the middle of a run.
        self._session("second").close()

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv* as root and wait for its end, *timeout* seconds at most (raises CommandTimeout)."""
        return self._shell.run(argv, stdin=stdin, timeout=timeout)

    def upload(self, source: Path, path: str) -> None:
        """Copy the file *source* of this machine to *path* on the host: whole or not at all, mode 600."""
        self._shell.upload(source, path)

    def lock(self, who: str) -> str | None:
        """Take the host's lock until ``close`` or the connection's end; None, or who holds it already."""
        return self._shell.lock(who)

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """A port of 127.0.0.1 that leads to *address*:*port* as the host sees it, until ``close``."""
        with self._lock:
            forwarder = self._forwarders.get((address, port))
            if forwarder is None:
                forwarder = Forwarder(self._transport, address, port, host=self._target.name)
                self._forwarders[address, port] = forwarder
        return forwarder.where

    def close(self) -> None:
        """End the connection and with it the lock. Never raises."""
        with self._lock:
            forwarders, self._forwarders = list(self._forwarders.values()), {}
        for forwarder in forwarders:
            forwarder.close()
        self._shell.close()
        end(self._ends)

    def _spawn(self, argv: Sequence[str]) -> Stream:
        """Start *argv* as root on a channel of its own."""
        mark, prompt, password = secrets.token_hex(16), "", self._target.sudo_password
        words = start_argv(argv, mark)
        sudo = self._settings.user != ROOT
        if sudo and password is None:
            words = [*_SUDO, "-n", "--", *words]
        elif sudo:
            # The prompt is asked for by a mark: only then does sudo read, and a second time means a wrong password.
            prompt = secrets.token_hex(16)
            words = [*_SUDO, "-S", "-p", prompt, "--", *words]
        what = Result(tuple(argv), 0).command
        try:
            channel = self._session("new")
            channel.exec_command(shlex.join(words))
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise lost(self._target.name, what, str(error)) from error
        stream = ChannelStream(channel)
        try:
            return started(stream, mark, prompt=prompt, password=password)
        except NotStarted as error:
            stream.close()
            # Its thread ends the channels first, and then says that it has ended.
            self._transport.join(0.1)
            if not self._transport.is_active():
                raise lost(self._target.name, what, error.said) from error
            raise self._refused(error.said, sudo=sudo, prompt=prompt) from error
        except TimeoutError as error:
            stream.close()
            if self._began:  # by this login commands run
                raise lost(self._target.name, what, str(error)) from error
            raise ConnectionFailed(
                f"user {self._settings.user} logged in, but no command ran: {error}",
                host=self._target.name,
                hint="check whether a shell startup file (.bashrc, .zshenv) or a forced command of sshd waits "
                f"for input; try: {self._settings.ssh_command('true')}",
                code="LoginHangs",
            ) from error
        except OSError as error:
            stream.close()
            raise lost(self._target.name, what, str(error)) from error

    def _session(self, which: str) -> paramiko.Channel:
        """The *which* session on this connection. Raises ConnectionFailed if the host opens none."""
        deadline = time.monotonic() + FREE_TIMEOUT
        while True:
            try:
                return self._transport.open_session(timeout=CHANNEL_TIMEOUT)
            except paramiko.ChannelException as error:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise ConnectionFailed(
                    f"sshd opens no {which} session on the connection: {error.text}",
                    host=self._target.name,
                    hint="set MaxSessions to 2 or more (10 is the default) in the host's sshd_config, then reload sshd",
                    code="SessionsTooFew",
                ) from error
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise lost(self._target.name, f"start of a {which} session", str(error)) from error

    def _refused(self, said: str, *, sudo: bool, prompt: str) -> ConnectionFailed:
        user, host = self._settings.user, self._target.name
        for words, code, remedy in _REFUSALS:
            if any(word in said for word in words):
                hint = remedy.format(user=user, ssh=self._settings.ssh_command())
                return ConnectionFailed(
                    f"user {user} can log in, but cannot run commands: {said}", host=host, hint=hint, code=code
                )
        if prompt and (said == prompt or "incorrect password" in said):
            return ConnectionFailed(
                f"sudo does not accept the password of user {user}",
                host=host,
                hint="enter the correct password; nothing was changed",
                code="SudoPasswordWrong",
            )
        if sudo:
            return ConnectionFailed(
                f"sudo failed for user {user}: {said}",
                host=host,
                hint="log in as root, give the sudo password (on a terminal, or in KUBEADM_REGISTRY_SUDO_PASSWORD), "
                f"or allow sudo without one: {user} ALL=(ALL) NOPASSWD: ALL",
                code="SudoNeeded",
            )
        return ConnectionFailed(
            f"user {user} has no shell on the host: {said}",
            host=host,
            hint=f"try: {self._settings.ssh_command('true')}",
        )


class ChannelStream:
    """A process at the other end of an SSH channel as a Stream."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    def exchange(self, data: memoryview, wait: float) -> tuple[int, bytes, bytes]:
        """Send what fits of *data* and read what is there; see Stream."""
        sent = self._send(data)
        if not sent:
            # Nobody tells when the window opens, so it is looked at every 5 ms while there is something to send. And
            # paramiko loses a wake-up when its thread and this one touch the two streams' events at the same moment
            # (OrPipe has no lock; seen as an answer that lay unread for 80 s), so no wait is longer than 20 ms.
            self._poll.poll(min(max(0, wait), 0.005 if data else 0.02) * 1000)
        ended = bool(self._channel.eof_received or self._channel.closed)
        out = self._channel.recv(1 << 20) if self._channel.recv_ready() else b""
        err = self._channel.recv_stderr(1 << 20) if self._channel.recv_stderr_ready() else b""
        if ended and not out and not err:
            raise EOFError("the host closed the connection")
        return sent, out, err

    def end_input(self) -> None:
        """Close the process's standard input."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException), sending(self._channel):
            self._channel.shutdown_write()

    def status(self, wait: float) -> int | None:
        """The exit status of the ended process, waiting *wait* seconds at most."""
        if not self._channel.status_event.wait(wait) or self._channel.exit_status < 0:
            return None
        return self._channel.exit_status

    def close(self) -> None:
        """Give the process up."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()

    def _send(self, data: memoryview) -> int:
        if not data:
            return 0
        if self._channel.closed or self._channel.eof_sent:
            return len(data)
        if not self._channel.send_ready():
            return 0
        try:
            with sending(self._channel):
                return self._channel.send(bytes(data[:32768]))
        except (OSError, EOFError, paramiko.SSHException):
            # What came before the end is still to be read; then there is EOFError.
            return len(data)
