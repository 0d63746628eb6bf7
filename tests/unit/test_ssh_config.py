import getpass
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.ssh_config import SshTarget, jump_target, resolve

HOME = Path.home()


@pytest.fixture(autouse=True)
def no_agent(monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def ask(tmp_path):
    """Resolves the target ``cp-1`` under a given ssh_config."""
    if not shutil.which("ssh"):
        pytest.skip("no ssh program found on this host")

    def resolved(text, **values):
        config = tmp_path / "config"
        config.write_text(text)
        return resolve(SshTarget(**{"name": "cp-1", "address": "cp-1", "config_file": config, **values}))

    return resolved


def test_without_a_word_of_ssh_config_the_defaults_of_openssh_hold(ask):
    got = ask("")
    assert (got.hostname, got.port, got.user) == ("cp-1", 22, getpass.getuser())
    assert HOME / ".ssh/id_ed25519" in got.identity_files
    assert got.known_hosts[:2] == (HOME / ".ssh/known_hosts", HOME / ".ssh/known_hosts2")
    assert Path("/etc/ssh/ssh_known_hosts") in got.known_hosts
    assert (got.connect_timeout, got.keepalive) == (10, 5)
    assert (got.agent, got.proxy_command, got.jumps, got.host_key_alias) == (None, None, (), None)


def test_ssh_config_is_honoured(ask):
    got = ask(
        """
Host cp-*
  HostName %h.example.com
  User joe
  Port 2222
  IdentityFile ~/.ssh/%r-at-%h
  IdentityFile /keys/%n
  IdentitiesOnly yes
  UserKnownHostsFile ~/.ssh/a /tmp/%h
  GlobalKnownHostsFile /etc/b
  RevokedHostKeys /etc/c
  HostKeyAlias rack
  ConnectTimeout 3
  ServerAliveInterval 7
  ProxyJump ann@bastion:22,10.0.0.1
Host *
  User nobody
"""
    )
    assert (got.hostname, got.port, got.user) == ("cp-1.example.com", 2222, "joe")
    assert got.identity_files == (HOME / ".ssh/joe-at-cp-1.example.com", Path("/keys/cp-1"))
    assert got.identities_only
    assert got.known_hosts == (HOME / ".ssh/a", Path("/tmp/cp-1.example.com"), Path("/etc/b"))
    assert (got.host_key_alias, got.revoked) == ("rack", Path("/etc/c"))
    assert (got.connect_timeout, got.keepalive) == (3, 7)
    assert got.jumps == ("ann@bastion:22", "[10.0.0.1]")


def test_what_is_none_is_none(ask):
    settings = ask(
        "Host *\n  IdentityFile none\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n  RevokedHostKeys none\n"
    )
    assert (settings.identity_files, settings.known_hosts, settings.revoked) == ((), (), None)


@pytest.mark.parametrize("timeout", ["0", "none"])
def test_no_timeout_is_no_connection_that_must_be_there_at_once(ask, timeout):
    assert ask(f"Host *\n  ConnectTimeout {timeout}\n").connect_timeout == 10


def test_what_the_caller_says_wins(ask, tmp_path):
    got = ask(
        "User joe\nPort 2222\nIdentityFile /keys/a\nUserKnownHostsFile /k\nConnectTimeout 3\n",
        user="root",
        port=22,
        identity_file=Path("~/.ssh/lab"),
        known_hosts_file=tmp_path / "known hosts",
        connect_timeout=1.5,
    )
    assert (got.user, got.port, got.connect_timeout) == ("root", 22, 1.5)
    assert got.identity_files == (HOME / ".ssh/lab", Path("/keys/a"))
    assert got.known_hosts[0] == tmp_path / "known hosts"
    assert Path("/k") not in got.known_hosts


def test_a_host_on_the_way_may_be_known_to_the_user_already(tmp_path):
    target = SshTarget("cp-1", "bastion", config_file=Path("/dev/null"), known_hosts_file=tmp_path / "known")
    assert resolve(target, jump=True).known_hosts[:2] == (tmp_path / "known", HOME / ".ssh/known_hosts")


def test_the_users_port_and_name_decide_which_blocks_match(ask):
    text = "Match user root\n  IdentityFile /keys/root\nMatch originalhost cp-1 exec true\n  Port 2222\n"
    got = ask(text, user="root")
    assert (got.identity_files, got.port) == ((Path("/keys/root"),), 2222)


def test_included_files_count(ask, tmp_path):
    (tmp_path / "more").write_text("Host cp-1\n  User ann\n")
    assert ask(f"Include {tmp_path}/mo*\nUser joe\n").user == "ann"


def test_proxy_command_with_tokens(ask):
    got = ask("ProxyCommand nc -X '%%' %h %p %r %n\nHostName 10.0.0.11\n", user="root")
    assert got.proxy_command == "nc -X '%' 10.0.0.11 22 root cp-1"


def test_paths_with_environment_variables(ask, monkeypatch):
    text = "IdentityFile ${KEYS}/%r\nCertificateFile ${KEYS}/cert\n"
    monkeypatch.setenv("KEYS", "/keys")
    got = ask(text, user="root")
    assert (got.identity_files, got.certificate_files) == ((Path("/keys/root"),), (Path("/keys/cert"),))
    monkeypatch.delenv("KEYS")
    with pytest.raises(
        ConnectionFailed, match=r"environment variable KEYS \(\$\{KEYS\}/%r\), which is not set"
    ) as caught:
        ask(text)
    assert caught.value.code == "SshConfigInvalid"


@pytest.mark.parametrize(
    ("line", "socket"),
    [
        ("", Path("/run/agent")),
        ("IdentityAgent none", None),
        ("IdentityAgent ~/other.sock", HOME / "other.sock"),
        ("IdentityAgent SSH_AUTH_SOCK", Path("/run/agent")),
        ("IdentityAgent $OTHER_SOCK", Path("/run/other")),
        ("IdentityAgent ${OTHER_SOCK}", Path("/run/other")),
    ],
)
def test_which_agent(ask, monkeypatch, line, socket):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("OTHER_SOCK", "/run/other")
    assert ask(line + "\n").agent == socket


def test_a_broken_ssh_config_is_named(ask):
    with pytest.raises(ConnectionFailed, match="Bad configuration option: nonsense") as caught:
        ask("Nonsense yes\n")
    assert caught.value.code == "SshConfigInvalid"


def test_without_an_ssh_program_a_config_file_is_an_error_and_none_is_fine(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config"
    got = resolve(SshTarget("cp-1", "10.0.0.11", user="root", config_file=config))
    assert (got.hostname, got.port, got.user) == ("10.0.0.11", 22, "root")
    assert got.known_hosts[0] == HOME / ".ssh/known_hosts"
    config.touch()
    with pytest.raises(ConnectionFailed, match="no ssh program found on this host"):
        resolve(SshTarget("cp-1", "10.0.0.11", config_file=config))


@pytest.mark.parametrize(
    ("jump", "address", "user", "port"),
    [
        ("bastion", "bastion", None, None),
        ("ann@bastion", "bastion", "ann", None),
        ("ann@corp@bastion:2222", "bastion", "ann@corp", 2222),
        ("[fd00::1]:2222", "fd00::1", None, 2222),
        ("ann@[fd00::1]", "fd00::1", "ann", None),
        ("ssh://ann@bastion:2222", "bastion", "ann", 2222),
        ("bastion:65535", "bastion", None, 65535),
    ],
)
def test_hosts_to_jump_over(jump, address, user, port):
    got = jump_target(jump, SshTarget("cp-1", "cp-1", user="root", sudo_password="secret"))
    assert (got.name, got.address, got.user, got.port, got.sudo_password) == ("cp-1", address, user, port, None)


@pytest.mark.parametrize("jump", ["a:b:c", "bastion:65536", "bastion:0", "bastion:99999999999999999999"])
def test_a_jump_that_means_nothing_is_refused(jump):
    with pytest.raises(ConnectionFailed, match=f"not a valid ProxyJump: '{jump}'"):
        jump_target(jump, SshTarget("cp-1", "cp-1"))


def test_a_password_is_not_in_what_is_printed():
    assert "secret" not in repr(SshTarget("cp-1", "cp-1", sudo_password="secret"))


def test_a_home_that_does_not_exist_is_no_bug(ask):
    got = ask("IdentityFile ~nosuchuser/key\n", known_hosts_file=Path("~nosuchuser/known"))
    assert Path("~nosuchuser/key") in got.identity_files
    assert got.known_hosts[0] == Path("~nosuchuser/known")


#: Runs Python with an id that no passwd file has, and says what it is told to by ssh_config and by the system.
NAMELESS = ("unshare", "--user", "--map-user=54321", sys.executable, "-c", """
import json, sys
from pathlib import Path
from kubeadm_registry import whoami
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.ssh_config import SshTarget, resolve
try:
    got = resolve(SshTarget("cp-1", "10.0.0.11", config_file=Path(sys.argv[1]) if sys.argv[1:] else None))
except ConnectionFailed as error:
    print(json.dumps([error.code, error.message, error.hint]))
else:
    print(json.dumps([whoami.name(), str(whoami.home()), got.user, [str(key) for key in got.identity_files][:1]]))
""")  # fmt: skip


@pytest.fixture
def nameless(tmp_path):
    """Answers as one whose id has no name: in a container with an id of its own it is so."""
    if not shutil.which("ssh"):
        pytest.skip("no ssh program found on this host")

    def run(*arguments, **variables):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path), **variables}
        done = subprocess.run([*NAMELESS, *arguments], env=environment, capture_output=True, text=True, check=False)
        if "unshare" in done.stderr and not os.environ.get("CI"):
            pytest.skip("may not make a user namespace")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_an_id_without_a_name_works(nameless, tmp_path):
    keys = [f"{tmp_path}/.ssh/id_rsa"]
    assert nameless(HOME=str(tmp_path)) == ["uid-54321", str(tmp_path), "root", keys]
    assert nameless(HOME=str(tmp_path), USER="ann") == ["ann", str(tmp_path), "ann", keys]
    assert nameless() == ["uid-54321", "/", "root", ["/.ssh/id_rsa"]]


def test_an_id_without_a_name_cannot_have_ssh_read_a_configuration(nameless, tmp_path):
    """ssh does not run then; not to tell would mean to leave out what somebody wrote there."""
    (tmp_path / "config").write_text("User joe\n")
    code, message, hint = nameless(str(tmp_path / "config"), HOME=str(tmp_path))
    assert code == "SshConfigInvalid"
    assert f"{tmp_path / 'config'} exists, but ssh requires an entry in /etc/passwd for user id 54321" in message
    assert ">> /etc/passwd" in hint
    assert nameless(os.devnull, HOME=str(tmp_path))[2] == "root"
