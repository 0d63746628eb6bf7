"""A question to the one command that sshd runs for a key (``command=`` in authorized_keys, sshd(8))."""

from __future__ import annotations

import io
from collections.abc import Callable

import paramiko

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.process import lost, run_process
from kubeadm_registry.transport.ssh import CHANNEL_TIMEOUT, ChannelStream
from kubeadm_registry.transport.ssh_config import SshTarget
from kubeadm_registry.transport.ssh_login import end, login

#: Seconds in which some of a question must get through.
_STALL = 30.0
#: What sshd is asked to run. It runs its own command in place of it.
_ANY = "kubeadm-registry"


def ask(target: SshTarget, content: bytes, seconds: float) -> bytes:
    """Send *content* to the command at *target*, and return what it writes, within *seconds* of the last byte sent.

    Raises ConnectionFailed; with the code CommandRefused if the command failed.
    """
    ends: list[Callable[[], None]] = []
    try:
        transport, _ = login(target, ends)
        try:
            channel = transport.open_session(timeout=CHANNEL_TIMEOUT)
            channel.exec_command(_ANY)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise lost(target.name, _ANY, str(error)) from error
        stream = ChannelStream(channel)
        done = run_process(stream, io.BytesIO(content), (_ANY,), target.name, timeout=seconds, stall=_STALL)
    finally:
        end(ends)
    if not done.ok:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with status {done.code}"
        raise ConnectionFailed(
            f"the command for this key failed: {said[:300]}", host=target.name, code="CommandRefused",
            hint="run `kubeadm-registry operator install`, which puts it there",
        )  # fmt: skip
    return done.stdout
