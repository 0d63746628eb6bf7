"""Signatures of bundles: by the SSH keys that people have, over the index, in the bundle itself."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle, archive, check, inspect, problems, sign_file, signing, verify
from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.errors import BundleError, ConfigError, Error
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import contents, image, resealed, tar, write_layout

PAUSE = "registry.k8s.io/pause:3.10"
KINDS = {"ed25519": ("ed25519",), "ecdsa": ("ecdsa", "-b", "384"), "rsa": ("rsa", "-b", "2048")}


def keygen(path: Path, *kind: str, passphrase: str = "") -> Path:
    """A new key pair: the private key's file."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", *(kind or ("ed25519",)), "-N", passphrase, "-C", "somebody", "-f", path], check=True
    )
    return path


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: keygen(folder / name, *kind) for name, kind in KINDS.items()} | {"other": keygen(folder / "other")}


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    return made(tmp_path / "unsigned.tar")


def made(path: Path, layer: bytes = b"layer" * 1000, **settings: object) -> Path:
    layout = write_layout(path.with_suffix(".layout"), image(PAUSE, layer))
    create(path, {}, images=[FromLayout(layout)], cache=path.parent / "cache", **settings)  # type: ignore[arg-type]
    return path


def who(path: Path, key: Path) -> str:
    with Bundle.open(path) as bundle:
        return check(bundle.layout, key)


def refusal(path: Path, key: Path) -> Error:
    with pytest.raises(BundleError) as caught:
        who(path, key)
    assert [problem.code for problem in problems(path, key=key)] == [caught.value.code], "verify says the same"
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_signed_and_checked(unsigned: Path, keys: dict[str, Path], kind: str) -> None:
    before = unsigned.read_bytes()
    assert sign_file(unsigned, keys[kind]) == inspect(unsigned)["index"]
    assert who(unsigned, public(keys[kind])).startswith(f"{kind.upper()} key SHA256:")
    verify(unsigned, key=public(keys[kind]))
    assert inspect(unsigned)["signed"]
    after = unsigned.read_bytes()
    assert after.startswith(before[: len(before.rstrip(b"\0")) // 512 * 512]), "nothing before the end is touched"
    assert len(after) <= len(before) + 2048
    with tarfile.open(unsigned) as other:
        assert other.getnames()[-1] == "index.json.sig"
        signature = other.extractfile("index.json.sig").read()  # type: ignore[union-attr]
    (unsigned.parent / "sig").write_bytes(signature)
    told = subprocess.run(
        ["ssh-keygen", "-Y", "check-novalidate", "-n", "bundle.kubeadm-registry.dev", "-s", unsigned.parent / "sig"],
        input=contents(unsigned)["index.json"], capture_output=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith(b'Good "bundle.kubeadm-registry.dev" signature'), "without our tool as well"


def test_create_signs_in_one_go(unsigned: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    signed = made(tmp_path / "signed.tar", sign=keys["ed25519"])
    verify(signed, key=public(keys["ed25519"]))
    sign_file(unsigned, keys["ed25519"])
    assert signed.read_bytes() == unsigned.read_bytes(), "signing afterwards gives the same file"


def test_signed_anew(unsigned: Path, keys: dict[str, Path]) -> None:
    for name in ("rsa", "ed25519", "rsa", "other"):
        sign_file(unsigned, keys[name])
        verify(unsigned, key=public(keys[name]))
    assert list(contents(unsigned)).count("index.json.sig") == 1
    assert not unsigned.read_bytes()[-1024:].strip(b"\0")


def test_a_directory_is_signed_as_well(unsigned: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(unsigned) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    sign_file(tmp_path / "unpacked", keys["ed25519"])
    verify(tmp_path / "unpacked", key=public(keys["ed25519"]))


def test_without_a_key_nobody_asks(unsigned: Path, keys: dict[str, Path]) -> None:
    sign_file(unsigned, keys["ed25519"])
    verify(unsigned)


def test_a_stripped_signature(unsigned: Path, keys: dict[str, Path]) -> None:
    assert refusal(unsigned, public(keys["ed25519"])).code == "BundleUnsigned"
    sign_file(unsigned, keys["ed25519"])
    files = contents(unsigned)
    del files[signing.FILE]
    write_layout(unsigned, files)
    assert refusal(unsigned, public(keys["ed25519"])).code == "BundleUnsigned"


def test_another_key(unsigned: Path, keys: dict[str, Path]) -> None:
    sign_file(unsigned, keys["other"])
    error = refusal(unsigned, public(keys["ed25519"]))
    assert error.code == "BundleSignatureInvalid"
    assert "which is not in" in error.message
    assert "SHA256:" in error.message, "which key it was"


@pytest.mark.parametrize("what", ["manifest swapped", "index changed by a blank", "an image renamed"])
def test_something_swapped_under_a_valid_signature(
    unsigned: Path, keys: dict[str, Path], tmp_path: Path, what: str
) -> None:
    sign_file(unsigned, keys["ed25519"])
    files = contents(unsigned)
    if what == "manifest swapped":
        other = contents(made(tmp_path / "other.tar", b"evil"))
        files = {**other, signing.FILE: files[signing.FILE]}
    elif what == "an image renamed":
        files[oci.INDEX_FILE] = files[oci.INDEX_FILE].replace(b"pause:3.10", b"pause:3.11")
    else:
        files[oci.INDEX_FILE] += b" "
    write_layout(unsigned, resealed(files))
    verify(unsigned)
    assert refusal(unsigned, public(keys["ed25519"])).code == "BundleSignatureInvalid"


@pytest.mark.parametrize("signature", [b"", b"hello", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n", b"x" * 70_000], ids=len)
def test_what_is_no_signature(unsigned: Path, keys: dict[str, Path], signature: bytes) -> None:
    write_layout(unsigned, contents(unsigned) | {signing.FILE: signature})
    code = refusal(unsigned, public(keys["ed25519"])).code
    assert code == ("BundleDamaged" if len(signature) > signing.MAX_SIGNATURE else "BundleSignatureInvalid")


def test_a_signature_for_another_purpose(unsigned: Path, keys: dict[str, Path]) -> None:
    done = subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keys["ed25519"]],
        input=contents(unsigned)[oci.INDEX_FILE], capture_output=True, check=True,
    )  # fmt: skip
    write_layout(unsigned, contents(unsigned) | {signing.FILE: done.stdout})
    assert refusal(unsigned, public(keys["ed25519"])).code == "BundleSignatureInvalid"


def test_allowed_signers(unsigned: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    sign_file(unsigned, keys["ed25519"])
    key, other = (" ".join(public(keys[name]).read_text().split()[:2]) for name in ("ed25519", "other"))
    allowed = tmp_path / "allowed_signers"
    for right in (
        f"somebody@example.org {key}", f"*@example.org,*@example.com {key}", f"* {key}",
        f"# comment\n\na@b {other}\nsomebody {key}\n", f"{other} comment\n{key}",
        f'somebody namespaces="git,bundle.*" {key}', f'somebody valid-after="20200101" {key}',
    ):  # fmt: skip
        allowed.write_text(right)
        assert "ED25519 key SHA256:" in who(unsigned, allowed), right
    allowed.write_text(f"somebody@example.org {key}")
    assert who(unsigned, allowed).startswith("somebody@example.org with ED25519 key")
    for wrong in (
        "", "# nothing", f"somebody {other}", f'somebody namespaces="git" {key}', f"{key[:-9]}",
        f'somebody valid-before="20200101" {key}', f"somebody cert-authority {key}",
    ):  # fmt: skip
        allowed.write_text(wrong)
        assert refusal(unsigned, allowed).code == "BundleSignatureInvalid", wrong


def test_a_certificate_of_an_authority(unsigned: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    key = keygen(tmp_path / "key")
    arguments = ["-I", "release", "-n", "release@example.org", "-V", "always:forever", public(key)]
    subprocess.run(["ssh-keygen", "-q", "-s", keys["rsa"], *arguments], check=True)
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f"*@example.org cert-authority {public(keys['rsa']).read_text()}")
    sign_file(unsigned, tmp_path / "key-cert.pub")
    assert "ED25519-CERT" in who(unsigned, allowed)


def test_a_key_in_the_agent(
    unsigned: Path, keys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keygen(tmp_path / "key")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline(), "it says where it listens when it does"
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        subprocess.run(["ssh-add", "-q", key], check=True)
        key.unlink()
        sign_file(unsigned, public(key))
        verify(unsigned, key=public(key))
    finally:
        agent.terminate()
        agent.wait(10)
        agent.stdout.close()  # type: ignore[union-attr]


def test_keys_that_cannot_sign(unsigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "text").write_text("hello")
    alone = public(keygen(tmp_path / "alone"))
    (tmp_path / "alone").unlink()
    before = unsigned.read_bytes()
    for key, code in [(tmp_path / "none", "KeyUnreadable"), (tmp_path / "text", "KeyUnusable"), (alone, "KeyUnusable")]:
        with pytest.raises(ConfigError) as caught:
            sign_file(unsigned, key)
        assert (caught.value.code, caught.value.exit_code) == (code, 2)
    with pytest.raises(ConfigError):
        made(tmp_path / "new.tar", sign=tmp_path / "none")
    assert not (tmp_path / "new.tar").exists()
    assert unsigned.read_bytes() == before
    with pytest.raises(ConfigError) as caught:
        who(unsigned, tmp_path / "none")
    assert caught.value.code == "KeyUnreadable"


@pytest.mark.parametrize("wrong", ["private", "text"])
def test_a_file_without_a_public_key_accuses_no_signature(
    unsigned: Path, keys: dict[str, Path], tmp_path: Path, wrong: str
) -> None:
    sign_file(unsigned, keys["ed25519"])
    (tmp_path / "text").write_text("apiVersion: kubeadm-registry.dev/v1alpha1\n")
    key = keys["ed25519"] if wrong == "private" else tmp_path / wrong
    with pytest.raises(ConfigError) as caught:
        who(unsigned, key)
    assert caught.value.code == "KeyUnusable"
    assert (f"{key}.pub" in caught.value.hint) == (wrong == "private")


@pytest.mark.parametrize("before", ["somebody@example.org\t", ""])
@pytest.mark.parametrize("gap", ["\t", "   "])
def test_columns_of_a_file_of_keys_may_be_aligned(
    unsigned: Path, keys: dict[str, Path], tmp_path: Path, before: str, gap: str
) -> None:
    sign_file(unsigned, keys["ed25519"])
    kind, key, _ = public(keys["ed25519"]).read_text().split(" ", 2)
    (tmp_path / "keys").write_text(f"{before}{kind}{gap}{key}{gap}somebody\n")
    assert "ED25519" in who(unsigned, tmp_path / "keys")


def test_no_ssh_keygen(unsigned: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sign_file(unsigned, keys["ed25519"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError) as caught:
        who(unsigned, public(keys["ed25519"]))
    assert caught.value.code == "SshKeygenMissing"


def test_an_archive_is_whole_before_its_new_last_file_is() -> None:
    """The header is the last that is written: a crash before it leaves the old archive, its end mark included."""
    content = io.BytesIO(tar(("a", b"1")))

    class Crash(Exception):
        pass

    class Broken(io.BytesIO):
        def fileno(self) -> int:
            raise Crash

    file = Broken(content.getvalue())
    with pytest.raises(Crash):
        archive.put_last(file, "b", b"2")
    assert file.getvalue()[:1536] == content.getvalue()[:1536]
    assert file.getvalue()[1024:1536] == bytes(512), "where the header will be is still the end mark"


def test_a_signature_elsewhere_is_not_written_over(unsigned: Path, keys: dict[str, Path]) -> None:
    files = contents(unsigned)
    write_layout(unsigned, {signing.FILE: b"x", **files})
    with pytest.raises(BundleError, match="not the last"):
        sign_file(unsigned, keys["ed25519"])
