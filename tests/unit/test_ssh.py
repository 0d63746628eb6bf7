"""Against a real sshd on loopback, which the tests start as the user who runs them."""

import contextlib
import dataclasses
import functools
import getpass
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kubeadm_registry.errors import CommandTimeout, ConnectionFailed
from kubeadm_registry.transport import process, shell, ssh, ssh_forward, ssh_keys, ssh_login
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.transport.shell import Shell
from kubeadm_registry.transport.ssh import SshTarget, connect
from kubeadm_registry.transport.ssh_config import resolve

SSHD = "/usr/sbin/sshd"
ME = getpass.getuser()
NOWHERE = Path(os.devnull)

if not Path(SSHD).exists() and not os.environ.get("CI"):
    pytest.skip("needs sshd (package openssh-server)", allow_module_level=True)


def keygen(path, *, passphrase="", kind="ed25519"):
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)
    return path


def public(path):
    """Kind and key, without the comment."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def wait_until(what, true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


class Server:
    """An sshd with keys, configuration and port of its own."""

    def __init__(self, home, *options, host_key=None):
        self.home = home
        home.mkdir()
        self.host_key = host_key or keygen(home / "host_key")
        self.user_key = keygen(home / "user_key")
        self.authorized = home / "authorized_keys"
        self.authorized.write_text(public(self.user_key) + "\n")
        # The first programs that a session finds. The user who runs the tests counts as root.
        self.bin = home / "bin"
        self.bin.mkdir()
        self.program("id", "echo 0")
        self.known = home / "known_hosts"
        self.log = home / "log"
        # Between finding a free port and listening there, somebody else may take it.
        for _ in range(5):
            if self.start(options):
                return
        pytest.fail(f"sshd does not start: {self.log.read_text()}")

    def start(self, options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.known.write_text(f"[127.0.0.1]:{self.port} {public(self.host_key)}\n")
        config = self.home / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    *options,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.host_key}",
                    f"AuthorizedKeysFile {self.authorized}",
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PermitRootLogin yes",
                    "MaxAuthTries 3",
                    f"SetEnv PATH={self.bin}:{os.environ['PATH']}",
                ]
            )
        )
        with contextlib.suppress(PermissionError):
            Path("/run/sshd").mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log)

        def listens():
            return b"Server listening" in self.log.read_bytes()

        wait_until("sshd listens or ends", lambda: listens() or self.process.poll() is not None)
        return self.process.poll() is None

    def program(self, name, body):
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def target(self, **values):
        return SshTarget(
            **{
                "name": "cp-1",
                "address": "127.0.0.1",
                "port": self.port,
                "identity_file": self.user_key,
                "known_hosts_file": self.known,
                "config_file": Path(os.devnull),
                "connect_timeout": 30,
                **values,
            }
        )

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(autouse=True)
def hermetic(monkeypatch, tmp_path):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(ssh_keys, "_hanging", {})
    monkeypatch.setattr(ssh, "ROOT", ME)
    monkeypatch.setattr(ssh, "Shell", functools.partial(Shell, lock_file=str(tmp_path / "lock")))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("sshd") / "server")
    yield one
    one.stop()


@pytest.fixture
def own_server(tmp_path):
    """Starts an sshd with options of sshd_config."""
    servers = []

    def start(*options):
        servers.append(Server(tmp_path / f"server{len(servers)}", *options))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


@pytest.fixture
def login():
    """Connects, and closes after the test."""
    opened = []

    def enter(target):
        opened.append(connect(target))
        return opened[-1]

    yield enter
    for one in opened:
        one.close()


def refused(target):
    with pytest.raises(ConnectionFailed) as caught:
        connect(target).close()
    assert caught.value.host == "cp-1"
    assert caught.value.hint
    return caught.value


# Commands


def test_commands_run_and_answer(server, login):
    host = login(server.target())
    result = host.run(["sh", "-c", "printf 'a\\0b'; printf err >&2; exit 7"])
    assert (result.code, result.stdout, result.stderr) == (7, b"a\0b", b"err")
    data = os.urandom(5_000_000)
    assert host.run(["cat"], stdin=data).stdout == data
    assert host.run(["cat"], stdin=data[:100_000]).stdout == data[:100_000]
    assert len(host.run(["head", "-c", "20000000", "/dev/zero"]).stdout) == 20_000_000


def test_a_command_that_outlives_its_time(server, login):
    host = login(server.target())
    with pytest.raises(CommandTimeout, match=r"cp-1: sleep 30 did not exit within 0\.3 s"):
        host.run(["sleep", "30"], timeout=0.3)
    assert host.run(["echo", "goes on"]).text == "goes on"


def test_a_broken_connection_is_an_error_and_stays_one(server, login):
    host = login(server.target())
    # The parents of a command are timeout, the shell, its starter, and the session's sshd.
    pids = host.run(
        [
            "sh",
            "-c",
            'p=$$; while [ "$p" -gt 1 ]; do p=$(ps -o ppid= -p "$p" | tr -d " "); ps -o pid=,comm= -p $p; done',
        ]
    )
    session = next(line.split()[0] for line in pids.text.splitlines() if "sshd" in line)
    os.kill(int(session), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match="the connection was lost during: true") as caught:
            host.run(["true"])
        assert caught.value.code == "ConnectionLost"


def test_the_lock_ends_with_the_connection(server, login):
    one, two = login(server.target()), login(server.target())
    assert one.lock("alice") is None
    assert str(two.lock("bob")).startswith("alice, since 20")
    one.close()
    assert two.lock("bob") is None


@contextlib.contextmanager
def holding(server, tmp_path, *words, config=NOWHERE, root=ME):
    """Another program that holds the lock and then has the host run *words*."""
    program = f"""
import functools, pathlib, sys
sys.path[:0] = {sys.path!r}
from kubeadm_registry.transport import ssh
from kubeadm_registry.transport.shell import Shell
ssh.ROOT = {root!r}
ssh.Shell = functools.partial(Shell, lock_file={str(tmp_path / "lock")!r})
host = ssh.connect(ssh.SshTarget("cp-1", "127.0.0.1", port={server.port}, config_file=pathlib.Path({str(config)!r}),
    identity_file=pathlib.Path({str(server.user_key)!r}), known_hosts_file=pathlib.Path({str(server.known)!r})))
print(host.lock("the other one"), flush=True)
host.run({list(words) or ["true"]!r})
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"None\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_ends_when_the_program_is_killed(server, login, tmp_path):
    with holding(server, tmp_path) as holder:
        two = login(server.target())
        assert "the other one" in str(two.lock("two"))
        holder.kill()
        wait_until("the lock is free", lambda: two.lock("two") is None)


@pytest.mark.parametrize("words", [(), ("sleep", "4")])
def test_the_lock_of_a_machine_that_vanished_is_taken_over(server, login, tmp_path, monkeypatch, words):
    """It says nothing any more, and its connection stands. A command that runs there is over first."""
    with holding(server, tmp_path, *words) as holder:
        two = login(server.target())
        holder.send_signal(signal.SIGSTOP)
        before = time.monotonic()
        assert "the other one" in str(two.lock("two"))
        monkeypatch.setattr(shell, "SILENT", 1)
        wait_until("the lock is free", lambda: two.lock("two") is None)
        assert time.monotonic() - before > (2 if words else 0)
        assert "two, since" in (tmp_path / "lock.who").read_text()
        holder.send_signal(signal.SIGCONT)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sudo"), reason="needs root and the real sudo")
def test_a_lock_that_was_taken_by_sudo_is_taken_over(server, login, tmp_path, monkeypatch):
    with holding(server, tmp_path, root="nobody of that name") as holder:
        two = login(server.target())
        holder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(shell, "SILENT", 1)
        wait_until("the lock is free", lambda: two.lock("two") is None)
        holder.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_the_lock_of_a_machine_that_waits_long_is_not_taken_over(server, login, tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text("Host *\n  ServerAliveInterval 1\n")
    monkeypatch.setattr(shell, "SILENT", 5)
    with holding(server, tmp_path, "sleep", "7", config=config):
        two, end = login(server.target()), time.monotonic() + 7
        while time.monotonic() < end:
            assert "the other one" in str(two.lock("two"))


def test_login_scripts_that_talk_do_no_harm(own_server, login):
    server = own_server()
    server.authorized.write_text(
        'command="echo Welcome to the server; echo motd >&2; exec sh -c \\"$SSH_ORIGINAL_COMMAND\\"" '
        + public(server.user_key)
    )
    assert login(server.target()).run(["echo", "hello"]).stdout == b"hello\n"


def test_an_account_without_a_shell_says_so(own_server):
    server = own_server("ForceCommand echo This account is currently not available.")
    assert "This account is currently not available." in refused(server.target()).message


# Trust


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_unknown_host_key_is_refused_until_the_hint_is_followed(tmp_path, kind, login):
    server = Server(tmp_path / "server", host_key=keygen(tmp_path / "key", kind=kind))
    try:
        known = tmp_path / "none yet"
        error = refused(server.target(known_hosts_file=known))
        assert error.code == "HostKeyUnknown"
        said = subprocess.run(["ssh-keygen", "-lf", server.host_key], check=True, capture_output=True, text=True)
        assert said.stdout.split()[1] in error.message
        subprocess.run(["sh", "-c", error.hint.partition("accept the key: ")[2]], check=True, capture_output=True)
        assert login(server.target(known_hosts_file=known)).run(["true"]).ok
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
        assert "127.0.0.1" not in known.read_text().replace("# 127.0.0.1", "")
        assert login(server.target(known_hosts_file=known)).run(["true"]).ok
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda server, other: f"[127.0.0.1]:{server.port} {public(other)}\n", "HostKeyChanged"),
        (lambda server, other: f"@revoked * {public(server.host_key)}\n" + server.known.read_text(), "HostKeyRevoked"),
    ],
)
def test_a_wrong_host_key_is_refused_before_any_login(server, tmp_path, change, code):
    known = tmp_path / "known_hosts"
    known.write_text(change(server, keygen(tmp_path / "other")))
    before = server.log.read_bytes().count(b"Accepted")
    assert refused(server.target(known_hosts_file=known)).code == code
    assert server.log.read_bytes().count(b"Accepted") == before


def test_the_users_ssh_config_finds_host_and_key(server, login, tmp_path):
    config = tmp_path / "config"
    config.write_text(
        f"Host registry-*\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {server.user_key}\n"
        f"  UserKnownHostsFile {tmp_path}/none {server.known}\n  IdentitiesOnly yes\n"
    )
    target = SshTarget("cp-1", "registry-1", config_file=config)
    assert login(target).run(["echo", "hello"]).text == "hello"


def test_where_a_connection_comes_from(own_server, login, tmp_path):
    """As a key may be good from some addresses only; what ssh_config says wins, and where it leads to another host."""
    server = own_server()
    server.authorized.write_text(f'from="127.0.0.7" {public(server.user_key)}\n')
    assert refused(server.target()).code == "AuthenticationFailed"
    login(server.target(source="127.0.0.7"))
    config = tmp_path / "config"
    config.write_text("BindAddress 127.0.0.7\n")
    login(server.target(config_file=config, source="127.0.0.8"))
    config.write_text("Host elsewhere\n  HostName 127.0.0.1\n")
    assert resolve(server.target(address="elsewhere", config_file=config, source="127.0.0.8")).source is None


# Ways there


RELAY = """
import os, socket, sys, threading
server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := server.recv(65536):
        os.write(1, data)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    server.sendall(data)
"""


@pytest.fixture
def jumps(server, tmp_path):
    config = tmp_path / "config"
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    config.write_text(
        f"""
Host target
  ProxyJump first
Host far
  ProxyJump {ME}@first,second
Host circle-a
  ProxyJump circle-b
Host circle-b
  ProxyJump circle-a
Host commanded
  ProxyCommand {sys.executable} {relay} %h %p
Host silent
  ProxyCommand sleep 60
Host ending
  ProxyCommand true
Host complaining
  ProxyCommand sh -c 'echo proxy: token has expired >&2; exit 1'
Host *
  HostName 127.0.0.1
  Port {server.port}
  IdentityFile {server.user_key}
  IdentitiesOnly yes
  UserKnownHostsFile {server.known}
"""
    )
    return lambda name, **values: SshTarget("cp-1", name, **{"config_file": config, "connect_timeout": 5, **values})


@pytest.mark.parametrize(("name", "logins"), [("target", 2), ("far", 3), ("commanded", 1)])
def test_over_other_hosts(server, login, jumps, name, logins):
    before = server.log.read_bytes().count(b"Accepted publickey")
    host = login(jumps(name))
    assert server.log.read_bytes().count(b"Accepted publickey") - before == logins
    data = os.urandom(1_000_000)
    assert host.run(["cat"], stdin=data).stdout == data
    host.close()
    with pytest.raises(ConnectionFailed):
        host.run(["true"])


def test_an_unknown_key_behind_a_jump_comes_with_a_command_that_works(jumps, login, server, tmp_path):
    known = tmp_path / "known"
    for _ in range(2):
        # First the host to jump over, then the target, which has the same address here: one answer serves both.
        error = refused(jumps("target", known_hosts_file=known))
        assert error.code == "HostKeyUnknown"
        subprocess.run(["sh", "-c", error.hint.partition("accept the key: ")[2]], check=True, capture_output=True)
        break
    assert login(jumps("target", known_hosts_file=known)).run(["true"]).ok


def test_many_targets_behind_one_host_do_not_come_to_it_all_at_once(own_server, server, tmp_path):
    """Of many logins at the same time sshd refuses some, and healthy targets would count as down."""
    bastion = own_server("MaxStartups 6:100:6")
    config = tmp_path / "config"
    config.write_text(
        f"""
Host bastion
  Port {bastion.port}
  IdentityFile {bastion.user_key}
  UserKnownHostsFile {bastion.known}
Host w-*
  Port {server.port}
  ProxyJump bastion
  IdentityFile {server.user_key}
  UserKnownHostsFile {server.known}
Host *
  HostName 127.0.0.1
  IdentitiesOnly yes
"""
    )
    together = threading.Barrier(16)

    def work(number):
        together.wait(60)
        host = connect(SshTarget(f"w-{number}", f"w-{number}", config_file=config, connect_timeout=30))
        try:
            return host.run(["echo", str(number)]).text
        finally:
            host.close()

    assert side_by_side(work, range(16)) == [str(number) for number in range(16)]


def test_those_that_wait_for_a_host_on_the_way_share_its_failure(jumps, monkeypatch):
    """One that is down costs a time-out, and not one for each target behind it."""
    tried, attempts = [], []
    enter = ssh_login._Entrance.login

    def down(settings, target):
        tried.append(target.address)
        wait_until("the others wait", lambda: len(attempts) >= 6)
        raise ConnectionFailed("it is down", host=target.name, hint="mend it", code="HostUnreachable")

    monkeypatch.setattr(ssh_login, "AT_ONCE", 1)
    monkeypatch.setattr(ssh_login, "_entrances", {})
    monkeypatch.setattr(ssh_login, "_dial", down)
    monkeypatch.setattr(ssh_login._Entrance, "login", lambda *them: (attempts.append(1), enter(*them))[1])

    def attempt(number):
        with pytest.raises(ConnectionFailed, match="it is down") as caught:
            connect(dataclasses.replace(jumps("target"), name=f"w-{number}"))
        return caught.value.host, caught.value.code, caught.value.hint

    assert side_by_side(attempt, range(6)) == [(f"w-{n}", "HostUnreachable", "mend it") for n in range(6)]
    assert (done := len(tried)) < 6
    assert attempt(7)[0] == "w-7"
    assert len(tried) == done + 1, "who comes later tries again"


def test_a_busy_server_that_closes_the_connection_is_asked_again(own_server, login, monkeypatch):
    monkeypatch.setattr(ssh_login, "PAUSES", (0.05,) * 200)
    server = own_server("MaxStartups 1:100:1")
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        assert other.recv(4) == b"SSH-"
        opened = []
        thread = threading.Thread(target=lambda: opened.append(login(server.target())))
        thread.start()
        wait_until("it was refused", lambda: b"MaxStartups" in server.log.read_bytes())
    thread.join(30)
    assert opened[0].run(["echo", "well"]).text == "well"


def test_a_server_that_always_closes_the_connection_is_given_up(monkeypatch):
    monkeypatch.setattr(ssh_login, "PAUSES", (0.01, 0.01))
    met = []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def close_each():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    met.append(connection)
                    with connection:
                        connection.sendall(b"Exceeded MaxStartups\r\n")
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(1000)

        threading.Thread(target=close_each, daemon=True).start()
        error = refused(SshTarget("cp-1", "127.0.0.1", port=other.getsockname()[1], config_file=NOWHERE))
        other.shutdown(socket.SHUT_RDWR)
    assert (error.code, len(met)) == ("HostUnreachable", 3)
    assert "no response from an SSH server: Exceeded MaxStartups" in error.message


@pytest.mark.parametrize("address", ["10.0.0..1", "a" * 64])
def test_what_is_no_name_of_a_host_is_said_and_no_bug(address, monkeypatch):
    settings = dataclasses.replace(resolve(SshTarget("cp-1", "x", config_file=NOWHERE)), hostname=address)
    monkeypatch.setattr(ssh_login, "resolve", lambda target: settings)
    error = refused(SshTarget("cp-1", "x"))
    assert error.code == "SshConfigInvalid"
    assert "is not a valid address or host name" in error.message


def test_what_a_proxy_command_says_is_told(jumps):
    error = refused(jumps("complaining"))
    assert error.code == "HostUnreachable"
    assert "through ProxyCommand: proxy: token has expired" in error.message


def test_a_circle_of_jumps_is_seen(jumps):
    assert "ProxyJump loop" in refused(jumps("circle-a")).message


def test_a_target_that_the_jump_cannot_reach(jumps, server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = refused(jumps("target", port=closed.getsockname()[1]))
    assert error.code == "HostUnreachable"
    assert "from the jump host" in error.message


@pytest.mark.parametrize("name", ["silent", "ending"])
def test_a_proxy_command_that_leads_nowhere(jumps, name, monkeypatch):
    monkeypatch.setattr(ssh_login, "HANDSHAKE", 0.5)
    assert refused(jumps(name, connect_timeout=0.5)).code == "HostUnreachable"


def test_nobody_listens():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        error = refused(SshTarget("cp-1", "127.0.0.1", port=port, config_file=Path(os.devnull)))
    assert error.code == "HostUnreachable"
    assert f"cannot reach 127.0.0.1:{port}: Connection refused" in error.message


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        error = refused(SshTarget("cp-1", "127.0.0.1", port=port, config_file=Path(os.devnull)))
    assert error.code == "HostUnreachable"
    assert "no response from an SSH server: it says: 'HTTP/1.0 400 Bad Request'" in error.message


def test_a_name_that_nobody_knows(monkeypatch):
    def resolve(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = refused(SshTarget("cp-1", "host.invalid", config_file=Path(os.devnull)))
    assert error.code == "HostUnreachable"
    assert "cannot reach host.invalid:22: Name or service not known" in error.message


# Keys


def test_a_wrong_key_is_refused_and_named(server, tmp_path):
    wrong = keygen(tmp_path / "wrong")
    error = refused(server.target(identity_file=wrong))
    assert error.code == "AuthenticationFailed"
    assert f"tried: {wrong} (refused)" in error.message
    assert "authorized_keys" in error.hint


def test_a_key_file_that_is_not_there_is_named(server, tmp_path):
    error = refused(server.target(identity_file=tmp_path / "none"))
    assert error.code == "AuthenticationFailed"
    assert f"{tmp_path / 'none'} (No such file or directory)" in error.message


def test_a_key_file_that_is_none_is_named(server, tmp_path):
    (tmp_path / "key").write_text("not a key")
    assert "(not a private key)" in refused(server.target(identity_file=tmp_path / "key")).message


def test_a_login_that_is_not_answered_in_time_was_not_refused(own_server, monkeypatch):
    monkeypatch.setattr(ssh_login, "LOGIN_TIMEOUT", 1)
    server = own_server("AuthorizedKeysCommand /bin/sleep 4", f"AuthorizedKeysCommandUser {ME}")
    server.authorized.write_text("")
    error = refused(server.target())
    assert f"by {server.user_key} was not answered within 1 s" in error.message
    assert "PAM" in error.hint


def test_the_server_gives_up_after_too_many_keys(server, tmp_path):
    config = tmp_path / "config"
    keys = [keygen(tmp_path / f"key{number}") for number in range(4)]
    config.write_text("".join(f"IdentityFile {key}\n" for key in keys))
    error = refused(server.target(identity_file=None, config_file=config))
    assert error.code == "AuthenticationFailed"
    assert str(keys[0]) in error.message
    assert "IdentitiesOnly yes" in error.hint


def test_a_key_that_does_not_suffice_is_not_one_to_add(own_server, tmp_path):
    server = own_server("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    config = tmp_path / "config"
    config.write_text(f"IdentityFile {keygen(tmp_path / 'wrong')}\n")
    error = refused(server.target(config_file=config))
    assert "accepted, but password is also required" in error.message
    assert error.hint.startswith("let the key suffice: `AuthenticationMethods publickey`")


def test_two_keys_open_where_sshd_wants_two(own_server, login, tmp_path):
    server = own_server("AuthenticationMethods publickey,publickey")
    second = keygen(tmp_path / "second")
    server.authorized.write_text(f"{public(server.user_key)}\n{public(second)}\n")
    config = tmp_path / "config"
    config.write_text(f"IdentityFile {second}\n")
    assert login(server.target(config_file=config)).run(["true"]).ok


def encrypt(server, path, *options):
    shutil.copy(server.user_key, path)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", *options, "-f", path], check=True)
    return path


def test_the_passphrase_of_a_key_is_asked_once_for_all_hosts(server, login, tmp_path):
    key = encrypt(server, tmp_path / "key", "-a", "1")
    questions = []

    def ask(path):
        questions.append(path)
        return "open sesame" if len(questions) > 1 else "wrong"

    target = server.target(identity_file=key, passphrase=ask)
    threads = [threading.Thread(target=login, args=(target,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert login(target).run(["true"]).ok
    assert questions == [key, key]


def test_an_old_pem_key_with_a_passphrase(own_server, login, tmp_path):
    server = own_server()
    key = keygen(tmp_path / "key", kind="rsa")
    server.authorized.write_text(public(key))
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-m", "PEM", "-f", key], check=True)
    assert login(server.target(identity_file=key, passphrase=lambda _: "open sesame")).run(["true"]).ok


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (None, "encrypted, no passphrase given"),
        (lambda _: None, "encrypted, no passphrase given"),
        (lambda _: "wrong", "encrypted, wrong passphrase"),
    ],
)
def test_an_encrypted_key_without_its_passphrase(server, tmp_path, ask, why):
    key = encrypt(server, tmp_path / "key", "-a", "1")
    assert f"{key} ({why})" in refused(server.target(identity_file=key, passphrase=ask)).message


def test_a_mistyped_passphrase_of_a_key_that_is_kept_by_aes_gcm(server, login, tmp_path):
    key = encrypt(server, tmp_path / "key", "-a", "1", "-Z", "aes256-gcm@openssh.com")
    answers = iter(["wrong", "open sesame"])
    assert login(server.target(identity_file=key, passphrase=lambda _: next(answers))).run(["true"]).ok


def test_an_encrypted_key_that_no_passphrase_opens_here(server, tmp_path):
    key = encrypt(server, tmp_path / "key", "-a", "1", "-Z", "chacha20-poly1305@openssh.com")
    why = "key type supported only with ssh-agent"
    assert f"{key} ({why})" in refused(server.target(identity_file=key, passphrase=lambda _: "open sesame")).message


@pytest.fixture
def agent(tmp_path, monkeypatch):
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(path)) == 0

    wait_until("the agent listens", listens)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield lambda key: subprocess.run(["ssh-add", "-q", key], check=True)
    process.terminate()
    process.wait(10)


def test_a_key_of_the_agent_opens_without_any_file(server, login, agent, tmp_path):
    agent(keygen(tmp_path / "wrong"))
    agent(server.user_key)
    config = tmp_path / "config"
    config.write_text(f"IdentityFile {tmp_path}/none\n")
    assert login(server.target(identity_file=None, config_file=config)).run(["true"]).ok


def test_an_encrypted_key_that_the_agent_holds_asks_nothing(server, login, agent, tmp_path):
    agent(server.user_key)
    key = encrypt(server, tmp_path / "key", "-a", "1")
    shutil.copy(f"{server.user_key}.pub", f"{key}.pub")
    assert login(server.target(identity_file=key, passphrase=None)).run(["true"]).ok


@pytest.fixture
def hanging_agent(tmp_path, monkeypatch):
    """An agent that takes every question and answers none; the connections that it got."""
    monkeypatch.setattr(ssh_keys, "LIST_TIMEOUT", 0.5)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent.sock"))
    met = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    met.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield met
        listener.shutdown(socket.SHUT_RDWR)
    for connection in met:
        connection.close()


def test_with_a_key_named_no_agent_is_asked(server, login, hanging_agent):
    assert login(server.target()).run(["true"]).ok
    assert hanging_agent == []


def test_an_agent_that_does_not_answer_is_named_and_left_alone_for_a_while(server, login, hanging_agent, tmp_path):
    config = tmp_path / "config"
    config.write_text(f"IdentityFile {tmp_path}/none\n")
    for why in ("did not respond within 0.5 s", "did not respond a moment ago"):
        error = refused(server.target(identity_file=None, config_file=config))
        assert f"tried: agent {tmp_path / 'agent.sock'} ({why})" in error.message
    assert len(hanging_agent) == 1
    config.write_text(f"IdentityFile {server.user_key}\n")
    assert login(server.target(identity_file=None, config_file=config)).run(["true"]).ok


def certify(authority, key, *options):
    """A certificate of *authority* beside *key*."""
    principals = ("-n", ME)
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "x", *principals, *options, f"{key}.pub"], check=True)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_certificate_beside_the_key_opens(own_server, login, tmp_path, kind):
    authority, key = keygen(tmp_path / "authority"), keygen(tmp_path / "key", kind=kind)
    server = own_server(f"TrustedUserCAKeys {authority}.pub")
    certify(authority, key)
    assert login(server.target(identity_file=key)).run(["true"]).ok
    assert b"CERT ID x" in server.log.read_bytes() or b"-CERT SHA256" in server.log.read_bytes()


def test_a_certificate_that_is_over_or_of_another_key_is_no_obstacle(own_server, login, tmp_path):
    authority, key, other = (keygen(tmp_path / name) for name in ("authority", "key", "other"))
    server = own_server(f"TrustedUserCAKeys {authority}.pub")
    server.authorized.write_text(public(key))
    certificate = tmp_path / "key-cert.pub"
    certify(authority, key, "-V", "20200101:20200201")
    assert login(server.target(identity_file=key)).run(["true"]).ok
    certify(authority, other)
    shutil.copy(tmp_path / "other-cert.pub", certificate)
    assert login(server.target(identity_file=key)).run(["true"]).ok
    server.authorized.write_text("")
    for content in (certificate.read_text(), "ssh-ed25519-cert-v01@openssh.com AAAA x", "nonsense", ""):
        certificate.write_text(content)
        error = refused(server.target(identity_file=key))
        assert f"tried: {certificate} (not a certificate of this key), {key} (refused)" in error.message


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("trusts", ["authority", "key"])
def test_a_certificate_and_its_key_in_the_agent_both_open(own_server, login, agent, tmp_path, kind, trusts):
    authority, key = keygen(tmp_path / "authority"), keygen(tmp_path / "key", kind=kind)
    certify(authority, key)
    agent(key)
    server = own_server(*([f"TrustedUserCAKeys {authority}.pub"] if trusts == "authority" else []))
    server.authorized.write_text(public(key) if trusts == "key" else "")
    assert login(server.target(identity_file=None)).run(["true"]).ok


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize(("beside", "by_agent"), [(True, True), (False, True), (False, False)])
def test_a_certificate_of_a_file_opens_with_the_key_wherever_that_is(
    own_server, login, agent, tmp_path, kind, beside, by_agent
):
    authority, key, other = keygen(tmp_path / "authority"), keygen(tmp_path / "key", kind=kind), keygen(tmp_path / "o")
    server = own_server(f"TrustedUserCAKeys {authority}.pub")
    if by_agent:
        agent(key)
        key.unlink()
    certify(authority, other)
    certify(authority, key)
    lines = [f"IdentityFile {key}", f"CertificateFile {tmp_path}/none", f"CertificateFile {other}-cert.pub"]
    if not beside:
        (tmp_path / "key-cert.pub").rename(tmp_path / "elsewhere")
        lines.append("CertificateFile ~/elsewhere")
    (tmp_path / "config").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert login(server.target(identity_file=None, config_file=tmp_path / "config")).run(["true"]).ok


def test_identities_only_leaves_the_agents_other_keys_alone(server, agent, tmp_path):
    agent(server.user_key)
    config = tmp_path / "config"
    config.write_text(f"IdentityFile {keygen(tmp_path / 'wrong')}\nIdentitiesOnly yes\n")
    assert refused(server.target(identity_file=None, config_file=config)).code == "AuthenticationFailed"


# Root


SUDO = r"""
while :; do case $1 in -n) n=1 ;; -S) s=1 ;; -p) prompt=$2; shift ;; --) shift; break ;; *) break ;; esac; shift; done
[ "$s" ] || { echo "sudo: a password is required" >&2; exit 1; }
printf '%s' "$prompt" >&2; read -r answer
[ "$answer" = "let me in" ] || { printf 'Sorry, try again.\n%s' "$prompt" >&2; read -r answer; exit 1; }
SUDO_USED=yes exec "$@"
"""


@pytest.fixture
def user(monkeypatch):
    """The one who logs in is not root."""
    monkeypatch.setattr(ssh, "ROOT", "somebody else")


def test_sudo_without_a_password(own_server, login, user):
    server = own_server()
    server.program("sudo", '[ "$1 $2" = "-n --" ] || exit 1; shift 2; SUDO_USED=yes exec "$@"')
    assert login(server.target()).run(["printenv", "SUDO_USED"]).text == "yes"


def test_sudo_with_a_password_that_no_command_line_shows(own_server, login, user, tmp_path):
    server = own_server()
    server.program("sudo", SUDO)
    host = login(server.target(sudo_password="let me in"))
    assert host.run(["printenv", "SUDO_USED"]).text == "yes"
    data = os.urandom(1_000_000)
    assert host.run(["cat"], stdin=data).stdout == data
    (tmp_path / "source").write_bytes(data)
    host.upload(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == data
    assert "let me in" not in host.run(["ps", "-e", "-o", "args"]).text


@pytest.mark.parametrize(
    ("body", "password", "code", "text"),
    [
        (SUDO, None, "SudoNeeded", "sudo: a password is required"),
        (SUDO, "wrong", "SudoPasswordWrong", "does not accept the password"),
        ("echo 'joe is not in the sudoers file.' >&2; exit 1", "let me in", "SudoNeeded", "not in the sudoers file"),
        ("echo 'sudo: sorry, you must have a tty to run sudo' >&2; exit 1", None, "SudoNeedsTerminal", "have a tty"),
        (
            "echo 'sudo: Account or password is expired, reset your password and try again' >&2; exit 1",
            None,
            "PasswordExpired",
            "password is expired",
        ),
    ],
)
def test_sudo_that_refuses(own_server, user, body, password, code, text):
    server = own_server()
    server.program("sudo", body)
    error = refused(server.target(sudo_password=password))
    assert error.code == code
    assert text in error.message


def test_sudo_refuses_in_english_whatever_the_language_of_the_host(own_server, user):
    server = own_server()
    server.program(
        "sudo",
        '[ "$LC_ALL" = C ] || { echo "sudo: Entschuldigung, Sie benötigen ein TTY" >&2; exit 1; }\n'
        "echo 'sudo: sorry, you must have a tty to run sudo' >&2; exit 1",
    )
    assert refused(server.target()).code == "SudoNeedsTerminal"


def test_a_host_without_sudo(own_server, user):
    server = own_server()
    server.program("sudo", "echo 'sh: sudo: not found' >&2; exit 127")
    error = refused(server.target())
    assert (error.code, "not found" in error.message) == ("SudoNeeded", True)


@pytest.mark.parametrize(
    ("words", "code", "remedy"),
    [
        (
            "WARNING: Your password has expired.\nPassword change required but no TTY available.",
            "PasswordExpired",
            f"ssh -p {{port}} {ME}@127.0.0.1",
        ),
        ("This account is currently not available.", "ShellForbidden", "usermod --shell"),
    ],
)
@pytest.mark.parametrize("root", [True, False])
def test_a_user_who_may_log_in_and_run_nothing(own_server, monkeypatch, words, code, remedy, root):
    """Whoever is asked for sudo's password then would look for the mistake in the wrong place."""
    if not root:
        monkeypatch.setattr(ssh, "ROOT", "somebody else")
    server = own_server(f"ForceCommand printf '%s\\n' '{words.splitlines()[0]}' '{words.splitlines()[-1]}'; exit 1")
    error = refused(server.target())
    assert error.code == code
    assert words.splitlines()[-1] in error.message
    assert remedy.format(port=server.port) in error.hint


def test_a_login_that_waits_for_input_is_told_from_a_host_that_is_down(own_server, monkeypatch):
    """As by `exec cat` in a .bashrc."""
    monkeypatch.setattr(process, "START_TIMEOUT", 3)
    error = refused(own_server("ForceCommand echo Welcome >&2; exec cat").target())
    assert error.code == "LoginHangs"
    assert "but no command ran: no answer for 3 s" in error.message
    assert ".bashrc" in error.hint


@pytest.mark.parametrize("root", [True, False])
def test_a_connection_that_is_lost_while_a_command_starts_is_no_refusal(own_server, monkeypatch, root):
    server = own_server("ForceCommand sleep 0.2; kill -9 $PPID")
    monkeypatch.setattr(ssh, "ROOT", ME if root else "somebody else")
    error = refused(server.target())
    assert (error.code, error.message) == ("ConnectionLost", "the connection was lost during: sh (no output)")


def test_a_host_that_falls_silent_during_a_run_has_no_login_that_waits_for_input(
    own_server, login, tmp_path, monkeypatch
):
    server = own_server(f'ForceCommand mkdir {tmp_path}/began 2>/dev/null || sleep 60; sh -c "$SSH_ORIGINAL_COMMAND"')
    host = login(server.target())
    monkeypatch.setattr(process, "START_TIMEOUT", 1)
    with pytest.raises(ConnectionFailed, match=r"lost during: upload /x .*no answer for 1 s") as caught:
        host.upload(server.user_key, "/x")
    assert caught.value.code == "ConnectionLost"


def test_a_host_that_opens_one_session_only_is_refused_at_once(own_server):
    """Else the first upload would fail in the middle of a run, and again when it is run again."""
    error = refused(own_server("MaxSessions 1").target())
    assert error.code == "SessionsTooFew"
    assert "set MaxSessions to 2" in error.hint


def test_two_sessions_are_enough(own_server, login, tmp_path):
    host = login(own_server("MaxSessions 2").target())
    data = os.urandom(1_000_000)
    for _ in range(3):
        assert host.run(["cat"], stdin=data).stdout == data
    (tmp_path / "source").write_bytes(data)
    host.upload(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == data


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("KexAlgorithms diffie-hellman-group18-sha512", "KexAlgorithms"),
        ("Ciphers chacha20-poly1305@openssh.com", "Ciphers"),
    ],
)
def test_a_server_without_an_algorithm_in_common_is_not_one_that_is_down(own_server, option, kind):
    error = refused(own_server(option).target())
    assert error.code == "SshAlgorithms"
    assert "no common algorithm" in error.message
    assert f"{kind} " in error.hint


def test_an_id_other_than_0_is_not_root(own_server):
    server = own_server()
    server.program("id", "echo 1000")
    assert refused(server.target()).code == "SudoNeeded"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sudo"), reason="needs root and the real sudo")
@pytest.mark.parametrize("password", [None, "not asked for"])
def test_the_real_sudo(server, login, user, password, tmp_path):
    host = login(server.target(sudo_password=password))
    assert host.run(["printenv", "SUDO_USER"]).text == "root"
    data = os.urandom(300_000)
    assert host.run(["cat"], stdin=data).stdout == data
    (tmp_path / "source").write_bytes(data)
    host.upload(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == data
    with pytest.raises(CommandTimeout):
        host.run(["sleep", "30"], timeout=0.2)


# Files and ports


def test_upload(server, login, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(20_000_000))
    login(server.target()).upload(source, str(target))
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()


def test_an_upload_that_breaks_off_leaves_the_old_file(server, login, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(50_000_000))
    target.write_bytes(b"old")
    host = login(server.target())
    exchange, sent = ssh.ChannelStream.exchange, []

    def breaking(stream, data, wait):
        count, out, err = exchange(stream, data, wait)
        sent.append(count)
        if sum(sent) > 5_000_000:
            host._transport.close()
        return count, out, err

    monkeypatch.setattr(ssh.ChannelStream, "exchange", breaking)
    with pytest.raises(ConnectionFailed, match="the connection was lost during: upload"):
        host.upload(source, str(target))
    wait_until("the part is gone", lambda: not list(tmp_path.glob(".new.*")))
    assert target.read_bytes() == b"old"


@pytest.fixture
def echo():
    """A service that sends back what it gets, at the end of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            data = b"".join(iter(lambda: connection.recv(65536), b""))
            connection.sendall(data[::-1])

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def ask_echo(where, data):
    with socket.create_connection(where, 10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_dial_leads_to_a_port_of_the_host(server, login, echo):
    host = login(server.target())
    where = host.dial("127.0.0.1", echo)
    assert where[0] == "127.0.0.1"
    assert where[1] != echo
    assert host.dial("127.0.0.1", echo) == where
    answers = {}
    data = {size: os.urandom(size) for size in (0, 1, 100_000, 5_000_000)}
    threads = [
        threading.Thread(target=lambda size=size: answers.update({size: ask_echo(where, data[size])})) for size in data
    ]
    for thread in threads:
        thread.start()
    assert host.run(["echo", "meanwhile"]).text == "meanwhile"
    for thread in threads:
        thread.join(30)
    assert answers == {size: content[::-1] for size, content in data.items()}


def test_dial_ends_with_the_connection(server, login, echo):
    host = login(server.target())
    where = host.dial("127.0.0.1", echo)
    with socket.create_connection(where, 10) as open_one:
        open_one.sendall(b"begun")
        host.close()
        open_one.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert open_one.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, 10)


def test_dial_before_anybody_listens(server, login):
    host = login(server.target())
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        where = host.dial(*late.getsockname())
        with socket.create_connection(where, 10) as early, contextlib.suppress(ConnectionResetError):
            assert early.recv(1) == b""
        late.listen()
        with socket.create_connection(where, 10) as client:
            client.sendall(b"hello")
            connection, _ = late.accept()
            with connection:
                assert connection.recv(5) == b"hello"


@pytest.fixture
def late(server, login, monkeypatch):
    """A host to which data go out only after it has closed their channel, as when a thread is not run just then."""
    host = login(server.target())
    send, channels = host._transport._send_user_message, {}

    def wait_and_send(message):
        kind, number = struct.unpack(">BI", message.asbytes()[:5])
        channels.update({one.remote_chanid: one for one in host._transport._channels.values()})
        if kind == 94 and number:  # data, but not of the shell
            wait_until("the channel is closed", lambda: channels[number].closed)
            time.sleep(0.2)
        send(message)

    monkeypatch.setattr(host._transport, "_send_user_message", wait_and_send)
    return host


def test_data_for_a_process_that_has_ended_do_not_end_the_connection(late):
    assert late.run(["sleep", "1"], stdin=bytes(1_000_000)).ok
    assert late.run(["echo", "goes on"]).text == "goes on"


def test_data_of_a_port_whose_other_end_is_gone_do_not_end_the_connection(late):
    channel = late._transport.open_session()
    channel.exec_command("sleep 0.3")
    client, port = socket.socketpair()
    with client, port:
        client.sendall(b"data")
        client.shutdown(socket.SHUT_WR)
        ssh_forward._copy(port, channel, channel)
    assert late.run(["echo", "goes on"]).text == "goes on"


def test_dial_to_what_drops_packets_is_no_lost_connection(server, login, monkeypatch):
    monkeypatch.setattr(ssh_forward, "_CONNECT_TIMEOUT", 1)
    host = login(server.target())
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # whoever comes when nobody accepts gets no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(
            ConnectionFailed, match=r"cp-1: no response from 127\.0\.0\.1 port \d+ to this host within 1 s"
        ):
            host.dial(*full.getsockname())
    assert host.run(["true"]).ok


def test_dial_where_sshd_forbids_it(own_server, login, echo):
    host = login(own_server("AllowTcpForwarding no").target())
    with pytest.raises(ConnectionFailed, match="sshd does not allow forwarding") as caught:
        host.dial("127.0.0.1", echo)
    assert caught.value.code == "ForwardingForbidden"
    assert "AllowTcpForwarding" in caught.value.hint
    assert host.run(["echo", "well"]).text == "well"
