"""The support archive: what is in it, and that no secret is, in whatever form it was logged."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from kubeadm_registry import paths, pki, secrets, support
from kubeadm_registry.components.services import every_service
from kubeadm_registry.errors import ConfigError, ConnectionFailed
from kubeadm_registry.support import collection
from kubeadm_registry.support.collection import Collected, collect, items
from kubeadm_registry.support.masking import Mask, values
from tests.unit.fake_cluster import FakeCluster, fixed_secrets

NAMES = ("cp-1", "cp-2", "cp-3")
ODD = "p/w+d=\u00fc%41 with blanks & more"
KNOWN = values(fixed_secrets(NAMES).to_json()) | {"odd": ODD}
PLAIN = {
    name: value for name, value in KNOWN.items() if not name.startswith(("login", "node_keys")) and "\n" not in value
}


def in_base64(value: str) -> bytes:
    return base64.b64encode(value.encode())


#: How a secret may be written.
FORMS = {
    "raw": str.encode,
    "URL-quoted": lambda value: quote(value, safe="").encode(),
    "quoted in small letters": lambda value: re.sub("%..", lambda one: one[0].lower(), quote(value, safe="")).encode(),
    "hex": lambda value: value.encode().hex().encode(),
    "HEX": lambda value: value.encode().hex().upper().encode(),
    "base64": in_base64,
    "base64 behind a byte": lambda value: in_base64(f"x{value}"),
    "base64 behind two": lambda value: in_base64(f"xy{value}"),
    "base64 before others": lambda value: in_base64(f"{value}:and more"),
    "URL-safe base64": lambda value: base64.urlsafe_b64encode(value.encode()),
    "login": lambda value: in_base64(f"push:{value}"),
    "JSON": lambda value: json.dumps({"it": value}).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PLAIN)
def test_each_form_of_each_secret_is_masked_and_found(name: str, form: str) -> None:
    mask = Mask.of(KNOWN)
    written = b"Nov 28 cp-1 zot[7]: " + FORMS[form](PLAIN[name]) + b" was refused\n"
    assert mask.found(written), "what is not masked would be found"
    masked = mask.masked(written)
    assert not mask.found(masked)
    assert masked.startswith(b"Nov 28 cp-1 zot[7]: ")
    assert masked.endswith(b" was refused\n")


def test_a_secret_over_two_lines_is_found_though_not_masked() -> None:
    mask, value = Mask.of(KNOWN), in_base64(KNOWN["push_password"])
    written = value[:9] + b"\n    " + value[9:]
    assert mask.found(mask.masked(written))


def test_keys_are_masked_line_by_line_and_the_public_half_stays() -> None:
    found = fixed_secrets(NAMES)
    mask = Mask.of(KNOWN)
    for line in found.ca_key.splitlines()[1:3]:
        assert mask.masked(line.encode()).startswith(b"<secret")
    public = found.node_id("cp-1").encode()
    assert mask.masked(public) == public
    assert mask.found(found.node_key("cp-1").encode())
    assert mask.masked(found.ca_certificate.encode()) == found.ca_certificate.encode()


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        (b'password = "of another registry"', b"password = <secret>"),
        (b'  "identitytoken": "abcdefgh",', b'  "identitytoken": <secret>,'),
        (b'    Authorization = ["Basic cHVzaDpwdw=="]', b"    Authorization = <secret>"),
        (b"Authorization: Basic cHVzaDpwdw==", b"Authorization: <secret>"),
        (b"Authorization: Bearer eyJhbGci.eyJzdWIi.c2lnbmVk", b"Authorization: <secret>"),
        (b'authorization = [\n  "Basic cHVzaDpwdw==",\n]', b"authorization = <secret>"),
        (b"api_key: abc", b"api_key: <secret>"),
        (b'{"token": "a", "password": "b"}', b'{"token": <secret>, "password": <secret>}'),
        (b'auth = {username = "u", password = "p"}', b'auth = {username = "u", password = <secret>}'),
        (b'msg="{\\"password\\":\\"pw\\"}"', b'msg="{\\"password\\":<secret>}"'),
        (b"# password = of-before", b"# password = <secret>"),
        (rb'password = "a\"b,c\\", user = "u"', b'password = <secret>, user = "u"'),
        (rb'msg="{\"password\":\"a\\\"b c\",\"user\":\"u\"}"', rb'msg="{\"password\":<secret>,\"user\":\"u\"}"'),
        (b'password = "/9j/4AAQ"', b"password = <secret>"),
        (b"password = /Xj/4AAQ", b"password = <secret>"),
        (b"password: <9j", b"password: <secret>"),
        (b'"secretkey": "abc"', b'"secretkey": <secret>'),
        (b"Environment=AWS_SECRET_ACCESS_KEY=abc", b"Environment=AWS_SECRET_ACCESS_KEY=<secret>"),
        (b"passphrase: abc", b"passphrase: <secret>"),
        (b'password = "none-of-yours"', b"password = <secret>"),
        (b"password = none", b"password = none"),
        (
            b'Environment="HTTPS_PROXY=http://me:pw@10.0.0.1:3128"',
            b'Environment="HTTPS_PROXY=http://me:<secret>@10.0.0.1:3128"',
        ),
        (b"HTTP_PROXY=http://me@corp:pw@10.0.0.1:3128", b"HTTP_PROXY=http://me@corp:<secret>@10.0.0.1:3128"),
        (b"HTTP_PROXY=http://me:p'w@10.0.0.1:3128", b"HTTP_PROXY=http://me:<secret>@10.0.0.1:3128"),
        (b'Environment="https_proxy=me:pw@10.0.0.1:3128"', b'Environment="https_proxy=me:<secret>@10.0.0.1:3128"'),
        (b"Environment=REGISTRY_PASSWORD=a,b{c}d USER=u", b"Environment=REGISTRY_PASSWORD=<secret> USER=u"),
        (b"token: a,b\nuser: u", b"token: <secret>\nuser: u"),
        (b"{password: a, user: u}", b"{password: <secret>, user: u}"),
        (b'{"password":7,"user":"u"}', b'{"password":<secret>,"user":"u"}'),
        (b"//nas/a /b cifs username=u,pass=a,uid=0 0 0", b"//nas/a /b cifs username=u,pass=<secret>,uid=0 0 0"),
        (b"https://10.0.0.10:5000/app@sha256:1", b"https://10.0.0.10:5000/app@sha256:1"),
        (b'rpc_secret_file = "/etc/x"', b'rpc_secret_file = "/etc/x"'),
        (b"admin_token = /etc/x", b"admin_token = /etc/x"),
        (b"tokens are counted", b"tokens are counted"),
    ],
)
def test_what_sounds_like_a_secret_of_others_is_masked_too(line: bytes, masked: bytes) -> None:
    assert Mask.of({}).masked(line) == masked


def test_private_keys_of_others_are_masked() -> None:
    text = b"a\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----\nb\n"
    assert Mask.of({}).masked(text) == b"a\n<private key>\nb\n"


def test_a_private_key_of_which_the_limit_of_a_file_left_a_part_is_masked() -> None:
    """Of each file the newest bytes are taken, and of a file in it the first ones."""
    begin, end = b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----"
    key = b"\n".join([b"MHcCAQEEIBkg" * 5] * 3)
    assert Mask.of({}).masked(begin[-9:] + b"\n" + key + b"\n" + end + b"\n") == b"<private key>\n"
    assert Mask.of({}).masked(key + b"\n" + end + b"\nb\n") == b"<private key>\nb\n"
    assert Mask.of({}).masked(b"a\n" + begin + b"\n" + key[:70] + b"\n=== /b\nc\n") == b"a\n<private key>\n=== /b\nc\n"
    assert Mask.of({}).masked(b"a: " + begin + b" is no key\n") == b"a: <private key> is no key\n"


def test_of_a_damaged_file_each_longer_word_is_a_secret() -> None:
    content = fixed_secrets(NAMES).to_json()[:-40]
    assert "the-retention-password" in values(content).values()


def test_keys_and_what_a_killed_run_has_left_of_them_are_not_read(tmp_path: Path) -> None:
    names = ("haproxy/node.pem", "haproxy/.node.pem.0123456789.kubeadm-registry", "nodes.key", "secrets.json",
             ".nodes.key.0123456789.kubeadm-registry", ".secrets.json.0123456789.kubeadm-registry",
             ".config.0123456789.kubeadm-registry.json")  # fmt: skip
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"content of {name}")
    item = next(one for one in ASKED if one.name == "configuration.txt")
    script = item.script.replace(paths.ETC, str(tmp_path))
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert re.findall("content of (.*)", said) == ["haproxy/node.pem"]
    assert said.count("(left out)") == len(names) - 1


ASKED = items(every_service())
PLANTED = "Nov 28 zot: login push:the-push-password, token dGhlLWFkbWluLXRva2Vu, %74 the-rpc-secret\n"


@pytest.fixture
def said(three: FakeCluster) -> FakeCluster:
    """Nodes with secrets, which answer each question with planted ones."""
    content = fixed_secrets(NAMES).to_json()
    for name, server in three.servers.items():
        server.put(secrets.PATH, content, 0o600)
        for item in ASKED:
            script = f"{{ {item.script}\n}} 2>&1 | tail -c {collection.MOST}"
            server.answer("sh", "-c", script, "support", with_=f"{name}: {item.name}\n{PLANTED}")
    return three


def collected(fake: FakeCluster) -> Collected:
    hosts = fake.cluster_hosts()
    return collect(fake.config, hosts, {}, "spec: {}\n", 3600)


def assert_clean(files: dict[str, bytes]) -> None:
    mask = Mask.of(values(fixed_secrets(NAMES).to_json()))
    for name, content in files.items():
        assert not mask.found(content), name


def test_planted_secrets_are_in_no_file(said: FakeCluster) -> None:
    found = collected(said)
    assert_clean(found.files)
    assert {f"nodes/{name}/{item.name}" for name in NAMES for item in ASKED} <= set(found.files)
    assert b"login push:<secret push_password>" in found.files["nodes/cp-2/journal.log"]
    assert found.withheld == {}
    assert found.masked >= len(ASKED) * len(NAMES)


def test_nothing_is_changed_on_the_nodes(said: FakeCluster) -> None:
    collected(said)
    assert said.acts() == []


def test_a_file_that_cannot_be_masked_is_left_out_and_that_is_said(said: FakeCluster) -> None:
    value = in_base64("the-push-password")
    item = next(one for one in ASKED if one.name == "journal.log")
    script = f"{{ {item.script}\n}} 2>&1 | tail -c {collection.MOST}"
    said.servers["cp-3"].answer("sh", "-c", script, "support", with_=value[:7] + b"\n" + value[7:])
    found = collected(said)
    assert found.withheld == {"nodes/cp-3/journal.log": ["push_password"]}
    assert "nodes/cp-3/journal.log" not in found.files
    index = found.files["index.md"].decode()
    assert "nodes/cp-3/journal.log | left out, because it still contained push_password" in index
    assert_clean(found.files)


def test_a_node_that_does_not_answer_is_named_and_the_others_are_there(said: FakeCluster) -> None:
    hosts = said.cluster_hosts()[:2]
    found = collect(said.config, hosts, {"cp-3": "no route to host"}, "spec: {}\n", 3600)
    assert "nodes/cp-2/journal.log" in found.files
    assert "| cp-3 | no route to host |" in found.files["index.md"].decode()


def test_a_node_that_breaks_off_in_the_middle_gives_what_it_gave(said: FakeCluster) -> None:
    def lost(*_: object) -> bytes:
        raise ConnectionFailed("the connection broke", host="cp-1")

    item = ASKED[-1]
    script = f"{{ {item.script}\n}} 2>&1 | tail -c {collection.MOST}"
    said.servers["cp-1"].answer("sh", "-c", script, "support", with_=lost)
    found = collected(said)
    assert found.missing[f"nodes/cp-1/{item.name}"] == "the connection broke"
    assert "nodes/cp-1/journal.log" in found.files


def test_what_cannot_be_searched_is_not_taken(said: FakeCluster) -> None:
    """All nodes are installed, and none has the secrets: nobody knows what to look for."""
    for server in said.servers.values():
        del server.tree[secrets.PATH]
        server.put(f"{paths.ETC}/garage/garage.toml", "x")
    found = collected(said)
    assert not [name for name in found.files if name.startswith("nodes/")]
    assert "no node has the secrets" in found.files["index.md"].decode()


def test_the_archive_is_whole_and_for_its_owner_alone(tmp_path: Path, said: FakeCluster) -> None:
    target = tmp_path / "out.tar.gz"
    target.write_text("an earlier one")
    os.umask(0o022)
    made = support.write(target, collected(said).files)
    assert target.stat().st_mode & 0o777 == 0o600
    assert made.size == target.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar.gz"]
    with tarfile.open(target) as tar:
        names = tar.getnames()
        assert names[0] == "out/index.md"
        assert len(names) == made.files
        whole = b"".join(file.read() for one in tar if (file := tar.extractfile(one)) is not None)
    assert_clean({"whole": whole})


def test_a_write_that_fails_leaves_the_earlier_archive(tmp_path: Path) -> None:
    target = tmp_path / "out.tar.gz"
    target.write_text("an earlier one")
    with pytest.raises(TypeError):
        support.write(target, {"index.md": None})  # type: ignore[dict-item]
    assert target.read_text() == "an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar.gz"]


def test_what_is_no_file_is_not_replaced_and_a_link_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        support.write(tmp_path / "pipe", {"index.md": b""})
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("real.tar.gz")
    support.write(tmp_path / "link", {"index.md": b""})
    assert (tmp_path / "link").is_symlink()
    assert tarfile.is_tarfile(tmp_path / "real.tar.gz")


def test_every_file_is_on_the_index_page(said: FakeCluster) -> None:
    found = collected(said)
    index = found.files["index.md"].decode()
    for name in found.files:
        assert name == "index.md" or f"| [{name}]({name}) |" in index


def test_the_login_with_a_password_of_before_is_that_of_the_same_user() -> None:
    found = values(json.dumps({"push_password": "n" * 20, "overlap": {"former_push_password": "f" * 20}}).encode())
    assert {value for name, value in found.items() if name.startswith("login")} == {
        in_base64(f"push:{password * 20}").decode() for password in "nf"
    }


def test_a_certificate_is_no_secret_wherever_the_public_key_stands_in_it() -> None:
    """Where it stands decides in which digits: with some names they are those of the private key's last line."""
    for length in range(12):
        pair = pki.make_ca("r" * (length + 1))
        mask = Mask.of({"ca_key": pair.key})
        assert mask.found(pair.certificate.encode()) == []
        assert mask.masked(pair.certificate.encode()) == pair.certificate.encode()
        marked = "".join(f"+{line}\n" for line in pair.key.splitlines()[1:3]).encode()
        assert mask.found(marked) == ["ca_key"]
        assert mask.found(mask.masked(marked)) == []
