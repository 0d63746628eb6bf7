"""A port of this machine that leads through an SSH connection to an address and port as the host sees them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import paramiko

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.ssh_login import sending

_ADMINISTRATIVELY_PROHIBITED = 1
_CHUNK = 32 * 1024
#: Seconds for the host to connect to where the port leads.
_CONNECT_TIMEOUT = 15


class Forwarder:
    """Listens on 127.0.0.1 and carries each connection to *address*:*port* through *transport*, until ``close``.

    *where* is what it listens on. Like ``ssh -L``, it is open to every user of this machine: what is behind it must
    guard itself. Raises ConnectionFailed when sshd forbids forwarding; that nobody listens over there yet is no error.
    """

    def __init__(self, transport: paramiko.Transport, address: str, port: int, *, host: str) -> None:
        self._transport = transport
        self._to = (address, port)
        self._host = host
        self._open: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        # A refusal later would reach only the client of the port, as a closed connection.
        with contextlib.suppress(paramiko.ChannelException), self._channel(("127.0.0.1", 0)):
            pass
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        name: tuple[str, int] = self._listener.getsockname()
        self.where = name
        threading.Thread(target=self._accept, name=f"forward {host} {address}:{port}", daemon=True).start()

    def close(self) -> None:
        """Stop listening and end every connection."""
        # A thread in accept() keeps the socket alive through close(), but not through shutdown().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends = list(self._open)
        for end in ends:
            end()

    def _channel(self, peer: tuple[str, int]) -> paramiko.Channel:
        try:
            return self._transport.open_channel("direct-tcpip", self._to, peer, timeout=_CONNECT_TIMEOUT)
        except paramiko.ChannelException as error:
            if error.code == _ADMINISTRATIVELY_PROHIBITED:
                raise ConnectionFailed(
                    f"sshd does not allow forwarding to {self._to[0]} port {self._to[1]}",
                    host=self._host,
                    hint="set AllowTcpForwarding yes (or local) in the host's sshd_config, see also PermitOpen and "
                    "DisableForwarding, and restrict in authorized_keys; then reload sshd",
                    code="ForwardingForbidden",
                ) from error
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            if self._transport.is_active():
                raise ConnectionFailed(
                    f"no response from {self._to[0]} port {self._to[1]} to this host within {_CONNECT_TIMEOUT} s",
                    host=self._host,
                    hint="check that this host is up, and that no firewall between the two drops the connection",
                ) from error
            raise ConnectionFailed(
                f"the connection was lost: {error or 'end of file'}", host=self._host, code="ConnectionLost"
            ) from error

    def _accept(self) -> None:
        while True:
            try:
                client, peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, peer), daemon=True).start()

    def _serve(self, client: socket.socket, peer: tuple[str, int]) -> None:
        with client:
            try:
                channel = self._channel(peer)
            except (ConnectionFailed, paramiko.ChannelException):
                return

            def end() -> None:
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                    channel.close()
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

            with self._lock:
                self._open.add(end)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=_copy, args=(channel, client, channel), daemon=True)
            back.start()
            _copy(client, channel, channel)
            back.join()
            end()
            with self._lock:
                self._open.discard(end)


def _copy(
    source: socket.socket | paramiko.Channel, sink: socket.socket | paramiko.Channel, channel: paramiko.Channel
) -> None:
    """Carry bytes one way, then the end of the stream. *channel* is one of the two."""
    with sending(channel):
        try:
            while chunk := source.recv(_CHUNK):
                sink.sendall(chunk)
        except (OSError, EOFError, paramiko.SSHException):
            # One side broke: the other must not wait for it.
            for end in (source, sink):
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                    end.shutdown(socket.SHUT_RDWR)
            return
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            sink.shutdown(socket.SHUT_WR)
