"""From a target to an authenticated SSH connection: over other hosts, by a proxy command, or straight."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import paramiko

from kubeadm_registry import whoami
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport import ssh_keys, ssh_trust
from kubeadm_registry.transport.ssh_config import Settings, SshTarget, jump_target, resolve

#: Seconds for the key exchange, at least: a small server under load needs some.
HANDSHAKE = 5.0
#: Seconds for the login, which may go through PAM, LDAP and a security key that waits for a touch.
LOGIN_TIMEOUT = 60.0
#: Seconds after which the kernel gives up a connection whose other end acknowledges nothing.
SILENCE = 30
#: More hosts to jump over than this are a circle in ssh_config.
MOST_JUMPS = 8
#: Logins at a time to a host on the way; sshd begins to refuse some when 10 are under way, and others log in too.
AT_ONCE = 4
#: Seconds, on average, before each further attempt when sshd takes the connection and closes it: it does so with a part
#: of those that come while many others log in (MaxStartups, sshd_config(5)).
PAUSES = (0.3, 0.7, 1.5, 3.0)
#: What sshd says, if anything, when it closes a connection for that reason.
_BUSY = ("Exceeded MaxStartups", "Not allowed at this time")
#: The code of ConnectionFailed when nobody answers: the host, its network or its sshd is down.
UNREACHABLE = "HostUnreachable"
#: What to do when no key opens: in general, after many of them, and when one was accepted and does not suffice.
_ADD_KEY = "add the public key to the user's authorized_keys on the host, or specify another key or user"
_ONE_KEY = "specify the key: spec.ssh.identityFile, or IdentityFile and `IdentitiesOnly yes` in ssh_config"
_KEY_ALONE = (
    "let the key suffice: `AuthenticationMethods publickey` in the host's sshd_config, in a `Match Address` block for "
    "this machine if need be"
)
#: Preferred to paramiko's own order: authenticated, and faster.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")

# What goes wrong is raised; paramiko would print it as well, with tracebacks from its threads.
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)

Wire = socket.socket | paramiko.Channel
Ends = list[Callable[[], None]]


class _Closed(Exception):
    """The other side closed the connection before it spoke SSH; says what it said instead."""


def login(target: SshTarget, ends: Ends) -> tuple[paramiko.Transport, Settings]:
    """An authenticated connection to *target*; what must be closed after it, last first, is put into *ends*.

    Raises ConnectionFailed.
    """
    settings = resolve(target)
    over = None
    way: tuple[Settings, ...] = ()
    for jump, jump_settings in _way(target, settings, []):
        way = (*way, jump_settings)
        with _entering:
            entrance = _entrances.setdefault(way, _Entrance())
        over = entrance.login(jump, jump_settings, over, ends)
    return _login(target, settings, over, ends), settings


def end(ends: Ends) -> None:
    """Close what was opened, last first."""
    while ends:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            ends.pop()()


def _way(target: SshTarget, settings: Settings, path: list[str]) -> list[tuple[SshTarget, Settings]]:
    """The hosts to jump over, first to last; *path* is where the question comes from.

    As with ssh, the first one may lie behind others by its own ssh_config; the rest are reached from the one before.
    """
    here = f"{settings.user}@{settings.where}"
    if len(path) >= MOST_JUMPS:
        raise ConnectionFailed(
            f"ProxyJump loop: {' <- '.join([*path, here])}",
            host=target.name,
            hint=f"try: ssh -G {target.address}",
            code="SshConfigInvalid",
        )
    jumps = [jump_target(jump, target) for jump in settings.jumps]
    # A bastion may match the very pattern that sends everybody through it.
    if not jumps or target.address in (jump.address for jump in jumps):
        return []
    hops = [(jump, resolve(jump, jump=True)) for jump in jumps]
    return [*_way(*hops[0], [*path, here]), *hops]


class _Entrance:
    """A host on the way, to which a few log in at a time: a bastion's sshd refuses some of many (MaxStartups).

    Each target has a connection of its own to it, as with ssh. One for all would be one login, but paramiko may send
    data on a channel that it has just closed, for which sshd ends the whole connection.
    """

    def __init__(self) -> None:
        self._turn = threading.BoundedSemaphore(AT_ONCE)
        self._failed = 0.0
        self._error = ConnectionFailed("")

    def login(
        self, jump: SshTarget, settings: Settings, over: paramiko.Transport | None, ends: Ends
    ) -> paramiko.Transport:
        """Log in, when it is our turn; who waited while it failed for another one fails too."""
        begin = time.monotonic()
        with self._turn:
            if self._failed > begin:
                raise ConnectionFailed(
                    self._error.message, hint=self._error.hint, host=jump.name, code=self._error.code
                )
            try:
                return _login(jump, settings, over, ends)
            except ConnectionFailed as error:
                self._error, self._failed = error, time.monotonic()
                raise


_entrances: dict[tuple[Settings, ...], _Entrance] = {}
_entering = threading.Lock()


def _login(target: SshTarget, settings: Settings, over: paramiko.Transport | None, ends: Ends) -> paramiko.Transport:
    """Log in to *target*, *over* the host before if there is one."""
    pauses = iter(PAUSES)
    while True:
        opened: Ends = []
        try:
            transport = _open(target, settings, over, opened)
            break
        except _Closed as closed:
            end(opened)
            pause = next(pauses, None)
            if pause is None:
                reason = closed or "it closed the connection, possibly because of too many logins"
                why = f"no response from an SSH server: {reason}"
                raise _unreachable(settings, target, why) from closed
            # Those that were refused together must not come back together.
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        except BaseException:
            end(opened)
            raise
    ends += opened
    _authenticate(transport, settings, target)
    transport.set_keepalive(settings.keepalive)
    return transport


def _open(target: SshTarget, settings: Settings, over: paramiko.Transport | None, ends: Ends) -> paramiko.Transport:
    """A connection that speaks SSH with a key that is trusted. Raises _Closed, ConnectionFailed."""
    if over is not None:
        return _handshake(_channel_to(over, settings, target), settings, target, ends, hops=True)
    if not settings.proxy_command:
        return _handshake(_dial(settings, target), settings, target, ends, hops=False)
    with tempfile.TemporaryFile() as said:
        try:
            return _handshake(_proxy(settings.proxy_command, said, ends), settings, target, ends, hops=False)
        except (_Closed, ConnectionFailed) as error:
            if isinstance(error, ConnectionFailed) and error.code != UNREACHABLE:
                raise
            said.seek(max(0, os.fstat(said.fileno()).st_size - 500))
            words = said.read().decode(errors="replace").strip()
            why = f"no response from an SSH server through ProxyCommand{': ' if words else ''}{words}"
            raise _unreachable(settings, target, why) from error


def _dial(settings: Settings, target: SshTarget) -> socket.socket:
    try:
        source = (settings.source, 0) if settings.source else None
        wire = socket.create_connection((settings.hostname, settings.port), settings.connect_timeout, source)
    except TimeoutError as error:
        raise _unreachable(settings, target, f"no response within {settings.connect_timeout:g} s") from error
    except OSError as error:
        raise _unreachable(settings, target, error.strerror or str(error)) from error
    except (ValueError, OverflowError) as error:
        # UnicodeError, which is a ValueError: an empty label, or one of more than 63 characters.
        raise ConnectionFailed(
            f"{settings.hostname!a} port {settings.port} is not a valid address or host name: {error}",
            host=target.name,
            hint=f"correct the address, or HostName and Port in ssh_config; try: ssh -G {target.address}",
            code="SshConfigInvalid",
        ) from error
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
        raise _unreachable(settings, target, f"from the jump host: {error}") from error


def _proxy(command: str, said: IO[bytes], ends: Ends) -> socket.socket:
    """Run ProxyCommand with a socket for its input and output, as ssh does, by a shell; its errors go to *said*."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=said.fileno(),
            start_new_session=True,
        )

    def end_it() -> None:
        ours.close()
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ends.append(end_it)
    return ours


_sender = threading.local()


@contextlib.contextmanager
def sending(channel: paramiko.Channel | socket.socket) -> Iterator[None]:
    """Drop what this thread sends on *channel* once that is closed.

    paramiko looks whether it is, and sends later: data that go out behind the answer to the other side's close are of
    no channel for sshd, which then ends the whole connection.
    """
    _sender.channel = channel
    try:
        yield
    finally:
        _sender.channel = None


class _Transport(paramiko.Transport):
    """Remembers what the other side says before it speaks SSH, which paramiko only logs; see also ``sending``."""

    said: str = ""

    def _send_message(self, data: paramiko.Message) -> None:
        # One thread at a time is here, and a channel is closed before that is sent.
        channel = getattr(_sender, "channel", None)
        if not (isinstance(channel, paramiko.Channel) and channel.transport is self and channel.closed):
            super()._send_message(data)  # type: ignore[misc]

    def _log(self, level: int, msg: str, *args: object) -> None:
        if isinstance(msg, str) and msg.startswith("Banner: "):
            self.said = f"{self.said} {msg.removeprefix('Banner: ').strip()}".strip()[:200]


def _handshake(wire: Wire, settings: Settings, target: SshTarget, ends: Ends, *, hops: bool) -> paramiko.Transport:
    """Speak SSH on *wire* and check the host key, before anything is told to the server."""
    ends.append(wire.close)
    try:
        transport = _Transport(wire)
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
    begin = time.monotonic()
    try:
        transport.start_client(timeout=patience)
        key = transport.get_remote_server_key()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise _incompatible(settings, target, options, str(error)) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        silent = not transport.remote_version and time.monotonic() - begin < patience - 1
        if silent and (not transport.said or transport.said in _BUSY):
            raise _Closed(transport.said) from error
        why = f"it says: {transport.said!a}" if transport.said else str(error) or "it closed the connection"
        raise _unreachable(settings, target, f"no response from an SSH server: {why}") from error
    ssh_trust.check(settings, known, key.get_name(), key.asbytes(), host=target.name, hops=hops)
    return transport


def _incompatible(
    settings: Settings, target: SshTarget, options: paramiko.transport.SecurityOptions, why: str
) -> ConnectionFailed:
    """The server is up, and there is no algorithm that both sides would use."""
    kinds = {
        "KexAlgorithms": options.kex,
        "Ciphers": options.ciphers,
        "MACs": options.digests,
        "HostKeyAlgorithms": [name for name in options.key_types if "cert" not in name],
    }
    ours = "; ".join(f"{kind} {','.join(names)}" for kind, names in kinds.items())
    return ConnectionFailed(
        f"{settings.where} and kubeadm-registry have no common algorithm: {why}",
        host=target.name,
        hint=f"allow one of each kind in the host's sshd_config: {ours}",
        code="SshAlgorithms",
    )


def _unreachable(settings: Settings, target: SshTarget, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"cannot reach {settings.where}: {why}",
        host=target.name,
        hint=f"check that the host is up and that address and port are correct; try: {settings.ssh_command('true')}",
        code=UNREACHABLE,
    )


def _authenticate(transport: paramiko.Transport, settings: Settings, target: SshTarget) -> None:
    """Log in by a key."""
    tried: list[str] = []
    remedy = _ADD_KEY
    named = whoami.expand(target.identity_file) if target.identity_file else None
    for what, key in ssh_keys.candidates(settings, named, target.passphrase):
        if isinstance(key, ssh_keys.KeyUnusable):
            tried.append(f"{what} ({key})")
            continue
        begin = time.monotonic()
        try:
            missing = transport.auth_publickey(settings.user, key)
        except paramiko.AuthenticationException as error:
            if transport.is_active() and time.monotonic() - begin >= LOGIN_TIMEOUT:
                raise ConnectionFailed(
                    f"the login of {settings.user} at {settings.where} by {what} was not answered within "
                    f"{LOGIN_TIMEOUT:g} s",
                    host=target.name,
                    hint="touch the security key, if it is one; else check what sshd waits for on the host (PAM, LDAP, "
                    f"AuthorizedKeysCommand), see its log; try: {settings.ssh_command('true')}",
                    code="AuthenticationFailed",
                ) from error
            tried.append(f"{what} (refused)")
            if not transport.is_active():
                many = len(tried) > 1
                why = "it closed the connection" + (", possibly after too many keys" if many else "")
                raise _no_entry(settings, target, tried, why, _ONE_KEY if many else _ADD_KEY) from error
        except (paramiko.SSHException, EOFError, OSError, AttributeError) as error:
            # AttributeError: a kind of key in the agent that paramiko does not know.
            tried.append(f"{what} ({error})")
            if not transport.is_active():
                raise _no_entry(settings, target, tried, "it closed the connection", _ADD_KEY) from error
        else:
            if not missing:
                return
            tried.append(f"{what} (accepted, but {' and '.join(missing)} is also required)")
            remedy = _KEY_ALONE
    raise _no_entry(settings, target, tried, "", remedy)


def _no_entry(settings: Settings, target: SshTarget, tried: Sequence[str], why: str, remedy: str) -> ConnectionFailed:
    keys = ", ".join(tried) or "no key found, neither a file nor in an agent"
    return ConnectionFailed(
        f"authentication failed for {settings.user} at {settings.where}{': ' + why if why else ''}; tried: {keys}",
        host=target.name,
        hint=f"{remedy}; try: {settings.ssh_command('true')}",
        code="AuthenticationFailed",
    )
