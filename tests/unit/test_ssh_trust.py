import base64
import hashlib
import hmac
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.ssh_config import Settings
from kubeadm_registry.transport.ssh_trust import check, fingerprint, known_keys, preferred_types

ED = b"\0\0\0\x0bssh-ed25519" + b"e" * 36
OTHER = b"\0\0\0\x0bssh-ed25519" + b"o" * 36
RSA = b"\0\0\0\x07ssh-rsa" + b"r" * 60


def settings(
    *files,
    hostname="10.0.0.11",
    alias="cp-1",
    port=22,
    host_key_alias=None,
    host_key=None,
    proxy_command=None,
    revoked=None,
):
    return Settings(
        alias=alias,
        hostname=hostname,
        port=port,
        user="root",
        identity_files=(),
        certificate_files=(),
        identities_only=False,
        agent=None,
        known_hosts=files,
        revoked=revoked,
        host_key_alias=host_key_alias,
        host_key=host_key,
        proxy_command=proxy_command,
        jumps=(),
        connect_timeout=10,
        keepalive=5,
    )


def line(names, blob=ED, marker=""):
    length = int.from_bytes(blob[:4])
    return f"{marker}{names} {blob[4 : 4 + length].decode()} {base64.b64encode(blob).decode()} comment\n"


def hashed(name):
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "known_hosts"


def verdict(where, blob=ED, *, key_type="ssh-ed25519", hops=False):
    try:
        check(where, known_keys(where), key_type, blob, host="cp-1", hops=hops)
    except ConnectionFailed as error:
        return error.code
    return "trusted"


@pytest.mark.parametrize(
    ("text", "where", "outcome"),
    [
        (line("10.0.0.11"), {}, "trusted"),
        (line("other,10.0.0.11"), {}, "trusted"),
        (line("CP-1"), {}, "trusted"),
        (line("10.0.0.*"), {}, "trusted"),
        (line("10.0.0.?1"), {}, "trusted"),
        (line("10.0.0.*,!10.0.0.11"), {}, "HostKeyUnknown"),
        (line(hashed("10.0.0.11")), {}, "trusted"),
        (line(hashed("10.0.0.12")), {}, "HostKeyUnknown"),
        (line("[10.0.0.11]:2222"), {"port": 2222}, "trusted"),
        (line(hashed("[10.0.0.11]:2222")), {"port": 2222}, "trusted"),
        (line("10.0.0.11"), {"port": 2222}, "HostKeyUnknown"),
        (line("[10.0.0.11]:2222"), {}, "HostKeyUnknown"),
        (line("fd00::1"), {"hostname": "fd00::1"}, "trusted"),
        (line("[fd00::1]:2222"), {"hostname": "fd00::1", "port": 2222}, "trusted"),
        (line("rack"), {"host_key_alias": "rack", "port": 2222}, "trusted"),
        (line("10.0.0.11"), {"host_key_alias": "rack"}, "HostKeyUnknown"),
        ("", {}, "HostKeyUnknown"),
        ("# " + line("10.0.0.11"), {}, "HostKeyUnknown"),
        ("10.0.0.11 ssh-ed25519\n10.0.0.11 ssh-ed25519 n*t\n|1|x|y ssh-ed25519 AAAA\n" + line("cp-1"), {}, "trusted"),
        (line("10.0.0.11", OTHER), {}, "HostKeyChanged"),
        (line("10.0.0.11", RSA), {}, "HostKeyChanged"),
        (line("10.0.0.11", OTHER) + line("10.0.0.11"), {}, "trusted"),
        (line("10.0.0.11", OTHER) + line("cp-1"), {}, "HostKeyChanged"),
        (line("10.0.0.11") + line("*", marker="@revoked "), {}, "HostKeyRevoked"),
        (line("10.0.0.11") + line("*", OTHER, marker="@revoked "), {}, "trusted"),
        (line("10.0.0.11", marker="@cert-authority "), {}, "HostKeyUnknown"),
    ],
)
def test_who_is_trusted(file, text, where, outcome):
    file.write_text(text)
    assert verdict(settings(file, **where)) == outcome


def test_several_files_count_and_missing_ones_do_not_matter(file, tmp_path):
    file.write_text(line("10.0.0.12"))
    second = tmp_path / "second"
    second.write_text(line("10.0.0.11"))
    assert verdict(settings(tmp_path / "none", file, second)) == "trusted"


def test_ssh_keygen_hashes_what_we_find(file):
    file.write_text(line("[10.0.0.11]:2222") + line("10.0.0.11"))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "10.0.0.11" not in file.read_text()
    assert verdict(settings(file, port=2222)) == "trusted"
    assert verdict(settings(file)) == "trusted"


def test_the_known_kind_of_key_is_asked_for_first(file):
    file.write_text(line("10.0.0.11", RSA))
    offered = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    assert preferred_types(known_keys(settings(file)), offered) == [
        "rsa-sha2-512",
        "rsa-sha2-256",
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
    ]
    assert preferred_types([], offered) == list(offered)


def complaint(where, blob=ED, *, key_type="ssh-ed25519", hops=False):
    with pytest.raises(ConnectionFailed) as caught:
        check(where, known_keys(where), key_type, blob, host="cp-1", hops=hops)
    assert caught.value.host == "cp-1"
    assert fingerprint(blob) in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("key_type", "kind"), [("ssh-ed25519", "ed25519"), ("ecdsa-sha2-nistp256", "ecdsa"), ("ssh-rsa", "rsa")]
)
def test_an_unknown_key_comes_with_the_command_that_accepts_it(file, key_type, kind):
    error = complaint(settings(file, port=2222), key_type=key_type)
    assert error.hint.endswith(f"accept the key: ssh-keyscan -p 2222 -t {kind} 10.0.0.11 >> {file}")
    assert f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub" in error.hint


@pytest.mark.parametrize(
    ("where", "hops"), [({}, True), ({"proxy_command": "nc"}, False), ({"host_key_alias": "rack"}, False)]
)
def test_where_ssh_keyscan_cannot_go_the_command_holds_the_key_itself(file, where, hops):
    error = complaint(settings(file, port=2222, **where), hops=hops)
    command = error.hint.partition("accept the key: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert verdict(settings(file, port=2222, **where)) == "trusted"


def test_a_changed_key_comes_with_the_command_that_forgets_the_old_one(file):
    file.write_text(line("10.0.0.12") + line("[10.0.0.11]:2222", OTHER))
    error = complaint(settings(file, port=2222))
    assert "host key verification failed" in error.message
    assert f"{file} line 2" in error.message
    command = error.hint.partition("remove the old key: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert file.read_text() == line("10.0.0.12")


def test_a_key_that_is_pinned_counts_whatever_known_hosts_has(file):
    file.write_text(line("10.0.0.11", OTHER))
    pinned = " ".join(line("x", ED).split()[1:3])
    assert verdict(settings(file, host_key=pinned)) == "trusted"
    file.write_text(line("10.0.0.11"))
    where = settings(file, host_key=" ".join(line("x", OTHER).split()[1:3]))
    error = complaint(where)
    assert error.code == "HostKeyChanged"
    assert fingerprint(OTHER) in error.message
    assert "hostKey" in error.hint
    assert preferred_types(known_keys(where), ("ssh-rsa", "ssh-ed25519"))[0] == "ssh-ed25519"


def test_where_known_hosts_is_nothing_the_command_names_a_file_that_keeps_the_key():
    hint = complaint(settings(Path(os.devnull), Path("/etc/ssh/ssh_known_hosts"))).hint
    assert f">> {Path.home() / '.ssh/known_hosts'}; and set spec.ssh.knownHostsFile to that file" in hint


def test_a_host_known_by_an_authority_only_is_told_so(file):
    file.write_text(line("*", OTHER, marker="@cert-authority "))
    assert "certificate authority for it, which is not supported" in complaint(settings(file)).message


@pytest.mark.parametrize("krl", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_key_that_ssh_config_revokes_is_refused(file, tmp_path, krl, pinned):
    keys = {}
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
        keys[name] = base64.b64decode((tmp_path / f"{name}.pub").read_text().split()[1])
    revoked = tmp_path / "revoked"
    if krl:
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, tmp_path / "key.pub"], check=True)
    else:
        revoked.write_text("# stolen\n\n" + (tmp_path / "key.pub").read_text())
    file.write_text(line("10.0.0.11", keys["key"]) + line("10.0.0.11", keys["other"]))
    for name, outcome in (("key", "HostKeyRevoked"), ("other", "trusted")):
        host_key = " ".join(line("x", keys[name]).split()[1:3]) if pinned else None
        assert verdict(settings(file, revoked=revoked, host_key=host_key), keys[name]) == outcome


@pytest.mark.parametrize("content", [None, b"SSHKRL\n\0 cut short"])
def test_where_revoked_keys_cannot_be_read_none_counts(file, tmp_path, content):
    file.write_text(line("10.0.0.11"))
    revoked = tmp_path / "revoked"
    if content is not None:
        revoked.write_bytes(content)
    assert verdict(settings(file, revoked=revoked)) == "SshConfigInvalid"


def test_fingerprints_are_those_of_openssh(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    public = tmp_path / "key.pub"
    said = subprocess.run(["ssh-keygen", "-lf", public], check=True, capture_output=True, text=True).stdout.split()[1]
    assert fingerprint(base64.b64decode(public.read_text().split()[1])) == said


def test_without_any_file_the_usual_one_is_named():
    assert complaint(settings()).hint.endswith(f">> {Path.home() / '.ssh/known_hosts'}")


ODD = [
    "10.0.0.11 ssh-ed25519 AAAÄ=\n",
    "10.0.0.11 ssh-ed25519 \udcff\udcfe\n",
    "10.0.0.11 ssh-ed25519\n",
    "10.0.0.11\n",
    "|1|Ä|Ä ssh-ed25519 AAAA\n",
    "|1|AAAA ssh-ed25519 AAAA\n",
    "|1||| ssh-ed25519 AAAA\n",
    "@revoked\n",
    "[[]!*?-] ssh-ed25519 AAAA\n",
    "\0\n",
    "<<<<<<< HEAD\n",
]


@pytest.mark.parametrize("odd", ODD, ids=[str(number) for number in range(len(ODD))])
def test_an_odd_line_says_nothing_of_the_others(file, odd):
    """As with OpenSSH; a line that somebody's editor or a merge left must not stop work on every host."""
    file.write_bytes((odd + line("10.0.0.11")).encode(errors="surrogateescape"))
    assert verdict(settings(file)) == "trusted"
    assert verdict(settings(file), OTHER) == "HostKeyChanged"


@given(st.binary(max_size=80) | st.text(alphabet="|1AÄ= @!*?[],\t-é", max_size=40).map(str.encode))
@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_line_is_a_bug(tmp_path, text):
    file = tmp_path / "known"
    file.write_bytes(text + b"\n" + line("10.0.0.11").encode())
    verdict(settings(file))
