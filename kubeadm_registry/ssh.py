"""A host over SSH: one connection, in it one long-lived shell."""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import paramiko

from kubeadm_registry import ssh_keys, ssh_trust
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.host import Result, Transport
from kubeadm_registry.shell import Shell, Stream, lost, start_argv, wait_started
from kubeadm_registry.ssh_config import Settings, SshTarget, jump_target, resolve
from kubeadm_registry.ssh_forward import Forwarder

__all__ = ["SshTarget", "connect"]

#: Seconds for the key exchange, at least: a small server under load needs some.
HANDSHAKE = 5.0
#: Seconds for the login, which may go through PAM, LDAP and a security key that waits for a touch.
LOGIN_TIMEOUT = 60.0
#: Seconds after which the kernel gives up a connection whose other end acknowledges nothing.
SILENCE = 30
#: More hosts to jump over than this are a circle in ssh_config.
MOST_JUMPS = 8
#: The code of ConnectionFailed when nobody answers: the host, its network or its sshd is down.
UNREACHABLE = "HostUnreachable"
#: Preferred to paramiko's own order: authenticated, and faster.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")

# What goes wrong is raised; paramiko would print it as well, with tracebacks from its threads.
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)

#: The user who needs no sudo.
ROOT = "root"

Wire = socket.socket | paramiko.Channel


def connect(target: SshTarget) -> Transport:
    """Log in to *target* and start its shell as root.

    Raises ConnectionFailed; its ``code`` says why: HostUnreachable, HostKeyUnknown, HostKeyChanged, HostKeyRevoked,
    AuthenticationFailed, SudoNeeded, SudoPasswordWrong, SshConfigInvalid, ToolsMissing, ConnectionLost. A lost
    connection stays lost: whoever wants another one calls ``connect`` again.
    """
    ends: list[Callable[[], None]] = []
    try:
        transport, settings = _login(target, ends, [])
        return _Ssh(transport, target, settings, ends)
    except BaseException:
        _end(ends)
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
        self._shell = Shell(self._spawn, target.name)
        if self._shell.uid != 0:
            raise ConnectionFailed(
                f"user {settings.user} has the id {self._shell.uid} on the host, not 0",
                host=target.name,
                hint="log in as root, or as a user who may use sudo",
                code="SudoNeeded",
            )

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
        _end(self._ends)

    def _spawn(self, argv: Sequence[str]) -> Stream:
        """Start *argv* as root on a channel of its own."""
        mark, prompt, password = secrets.token_hex(16), "", self._target.sudo_password
        words = start_argv(argv, mark)
        sudo = self._settings.user != ROOT
        if sudo and password is None:
            words = ["sudo", "-n", "--", *words]
        elif sudo:
            # The prompt is asked for by a mark: only then does sudo read, and a second time means a wrong password.
            prompt = secrets.token_hex(16)
            words = ["sudo", "-S", "-p", prompt, "--", *words]
        what = Result(tuple(argv), 0).command
        try:
            channel = self._transport.open_session(timeout=15)
            channel.exec_command(shlex.join(words))
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise lost(self._target.name, what, str(error)) from error
        stream = _ChannelStream(channel)
        try:
            said = wait_started(stream, mark, prompt=prompt, password=password)
        except OSError as error:
            stream.close()
            raise lost(self._target.name, what, str(error)) from error
        if said is None:
            return stream
        stream.close()
        raise self._refused(said, sudo=sudo, prompt=prompt)

    def _refused(self, said: str, *, sudo: bool, prompt: str) -> ConnectionFailed:
        user, host = self._settings.user, self._target.name
        if prompt and (said == prompt or "incorrect password" in said):
            return ConnectionFailed(
                f"sudo does not accept the password of user {user}",
                host=host,
                hint="give the right one; nothing was changed",
                code="SudoPasswordWrong",
            )
        if sudo:
            return ConnectionFailed(
                f"user {user} does not become root by sudo: {said}",
                host=host,
                hint="log in as root, give sudo's password (on a terminal, or in KUBEADM_REGISTRY_SUDO_PASSWORD), "
                f"or allow it without one: {user} ALL=(ALL) NOPASSWD: ALL",
                code="SudoNeeded",
            )
        return ConnectionFailed(
            f"user {user} has no shell there: {said}", host=host, hint=f"try: {self._settings.ssh_command('true')}"
        )


class _ChannelStream:
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
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
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
            return self._channel.send(bytes(data[:32768]))
        except (OSError, EOFError, paramiko.SSHException):
            # What came before the end is still to be read; then there is EOFError.
            return len(data)


def _login(
    target: SshTarget, ends: list[Callable[[], None]], path: list[str], over: paramiko.Transport | None = None
) -> tuple[paramiko.Transport, Settings]:
    """An authenticated connection to *target*; *over*: from there, instead of as ssh_config says.

    *path* is where this login comes from, *ends* what to close afterwards.
    """
    settings = resolve(target, jump=bool(path))
    here = f"{settings.user}@{settings.where}"
    if len(path) >= MOST_JUMPS:
        raise ConnectionFailed(
            f"ProxyJump goes in a circle: {' <- '.join([*path, here])}",
            host=target.name,
            hint=f"try: ssh -G {target.address}",
            code="SshConfigInvalid",
        )
    jumps = [jump_target(jump, target) for jump in settings.jumps] if over is None else []
    # A bastion may match the very pattern that sends everybody through it.
    if target.address not in (jump.address for jump in jumps):
        for jump in jumps:
            over, _ = _login(jump, ends, [*path, here], over)
    if over is not None:
        wire: Wire = _channel_to(over, settings, target)
    elif settings.proxy_command:
        wire = _proxy(settings.proxy_command, target, ends)
    else:
        wire = _dial(settings, target)
    transport = _handshake(wire, settings, target, ends, hops=over is not None)
    _authenticate(transport, settings, target)
    transport.set_keepalive(settings.keepalive)
    return transport, settings


def _dial(settings: Settings, target: SshTarget) -> socket.socket:
    try:
        wire = socket.create_connection((settings.hostname, settings.port), settings.connect_timeout)
    except TimeoutError as error:
        raise _unreachable(settings, target, f"no answer within {settings.connect_timeout:g} s") from error
    except OSError as error:
        raise _unreachable(settings, target, error.strerror or str(error)) from error
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE * 1000)
    return wire


def _channel_to(over: paramiko.Transport, settings: Settings, target: SshTarget) -> paramiko.Channel:
    to = (settings.hostname, settings.port)
    try:
        return over.open_channel("direct-tcpip", to, ("127.0.0.1", 0), timeout=settings.connect_timeout)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _unreachable(settings, target, f"from the host to jump over: {error}") from error


def _proxy(command: str, target: SshTarget, ends: list[Callable[[], None]]) -> socket.socket:
    """Run ProxyCommand with a socket for its input and output, as ssh does, by a shell."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ends.append(end)
    return ours


def _handshake(
    wire: Wire, settings: Settings, target: SshTarget, ends: list[Callable[[], None]], *, hops: bool
) -> paramiko.Transport:
    """Speak SSH on *wire* and check the host key, before anything is told to the server."""
    try:
        transport = paramiko.Transport(wire)
    except (paramiko.SSHException, OSError) as error:
        raise _unreachable(settings, target, str(error)) from error
    ends.append(transport.close)
    patience = max(settings.connect_timeout, HANDSHAKE)
    transport.banner_timeout = transport.handshake_timeout = patience
    transport.auth_timeout = LOGIN_TIMEOUT
    transport.channel_timeout = 15
    known = ssh_trust.known_keys(settings)
    options = transport.get_security_options()
    options.key_types = tuple(ssh_trust.preferred_types(known, options.key_types))
    options.ciphers = (*_CIPHERS, *(name for name in options.ciphers if name.endswith("-ctr")))
    options.digests = tuple(name for name in options.digests if "sha2" in name)
    try:
        transport.start_client(timeout=patience)
        key = transport.get_remote_server_key()
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _unreachable(settings, target, f"no SSH server answers: {error or 'it closed the connection'}") from error
    ssh_trust.check(settings, known, key.get_name(), key.asbytes(), host=target.name, hops=hops)
    return transport


def _unreachable(settings: Settings, target: SshTarget, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"cannot reach {settings.where}: {why}",
        host=target.name,
        hint=f"see that the host is up, and that address and port are right; try: {settings.ssh_command('true')}",
        code=UNREACHABLE,
    )


def _authenticate(transport: paramiko.Transport, settings: Settings, target: SshTarget) -> None:
    """Log in by a key."""
    tried: list[str] = []
    named = target.identity_file.expanduser() if target.identity_file else None
    for what, key in ssh_keys.candidates(settings, named, target.passphrase):
        if isinstance(key, ssh_keys.KeyUnusable):
            tried.append(f"{what} ({key})")
            continue
        try:
            missing = transport.auth_publickey(settings.user, key)
        except paramiko.AuthenticationException as error:
            tried.append(f"{what} (refused)")
            if not transport.is_active():
                raise _no_entry(
                    settings, target, tried, "it closed the connection, maybe after too many keys"
                ) from error
        except (paramiko.SSHException, EOFError, OSError, AttributeError) as error:
            # AttributeError: a kind of key in the agent that paramiko does not know.
            tried.append(f"{what} ({error})")
            if not transport.is_active():
                raise _no_entry(settings, target, tried, "it closed the connection") from error
        else:
            if not missing:
                return
            tried.append(f"{what} (accepted, but {' and '.join(missing)} is wanted as well)")
    raise _no_entry(settings, target, tried, "")


def _no_entry(settings: Settings, target: SshTarget, tried: Sequence[str], why: str) -> ConnectionFailed:
    keys = ", ".join(tried) or "no key found: neither a file nor one in an agent"
    return ConnectionFailed(
        f"{settings.where} does not let user {settings.user} in{': ' + why if why else ''}; tried: {keys}",
        host=target.name,
        hint="put the public key into the user's authorized_keys on the host, or name the right key and user; "
        f"try: {settings.ssh_command('true')}",
        code="AuthenticationFailed",
    )


def _end(ends: list[Callable[[], None]]) -> None:
    """Close what was opened, last first."""
    while ends:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            ends.pop()()
