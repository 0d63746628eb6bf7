"""The file of a backup: who can read it, who vouches for it, and what becomes of one that was changed."""

from __future__ import annotations

import io
import json
import ssl
import stat
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kubeadm_registry import config, pki, secrets
from kubeadm_registry.backup import (
    Backup,
    Contents,
    Identities,
    Image,
    Member,
    Passphrase,
    Pin,
    PublicKeys,
    Version,
    file,
    read,
    write,
)
from kubeadm_registry.bundle import signing
from kubeadm_registry.errors import BackupError, Error
from kubeadm_registry.formats import Found, NewerFormat
from kubeadm_registry.members import Members
from tests.unit.fake_cluster import authority, fixed_secrets
from tests.unit.test_bundle_signing import keygen, public
from tests.unit.test_bundle_signing import made as made_bundle

NAMES = ("cp-1", "cp-2", "cp-3")
DIGEST = "sha256:" + "ab" * 32
SECRETS = fixed_secrets(NAMES)
CONTENTS = Contents(
    SECRETS.found,
    f"# of the site\n{config.SMALLEST}",
    tuple(Member(name, f"10.0.0.1{number}", "id") for number, name in enumerate(NAMES, 1)),
    (Version("garage", "2.3.0", DIGEST),),
    (Image("registry.k8s.io/pause", "3.10", DIGEST), Image("team/app", "v1", DIGEST)),
    (Pin("team/app:v1", "in production", 1_700_000_000),),
)
SAMPLES = Path(__file__).parents[1] / "golden" / "formats" / "0.2"
PASSPHRASE = Passphrase("correct horse")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with private keys; beside each of SSH is its public key."""
    folder = tmp_path_factory.mktemp("keys")
    found = {
        "ed25519": keygen(folder / "ed25519"),
        "rsa": keygen(folder / "rsa", "rsa", "-b", "2048"),
        "ecdsa": keygen(folder / "ecdsa", "ecdsa"),
        "locked": keygen(folder / "locked", passphrase="open it"),
    }
    identity = pyrage.x25519.Identity.generate()
    found["age"] = folder / "age"
    found["age"].write_text(f"# created: today\n# public key: {identity.to_public()}\n{identity}\n")
    (folder / "age.pub").write_text(f"{identity.to_public()}\n")
    return found


def to(*keys: Path) -> PublicKeys:
    return PublicKeys.of((), [public(key) for key in keys])


def made(path: Path, lock: PublicKeys | Passphrase | None = None, **more: Any) -> Path:
    write(path, CONTENTS, lock, **more)
    return path


def refused(work: Callable[[], object], code: str) -> Error:
    with pytest.raises(Error) as caught:
        work()
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    return caught.value


def members(path: Path) -> dict[str, bytes]:
    return file.unpack(path.read_bytes())


# ---- who can read it ------------------------------------------------------------------------------------------------


def test_of_several_keys_in_one_option_each_reads_it(tmp_path: Path, keys: dict[str, Path]) -> None:
    """As with ``--recipient "$(cat *.pub)"``: age reads the first key of a text, and all of them stood in the index."""
    several = "\n".join(
        [f" {public(keys['ed25519']).read_text()}", "# of the other site", public(keys["age"]).read_text()]
    )
    path = made(tmp_path / "b", PublicKeys.of([several], []))
    assert len(read(path).index.recipients) == 2
    for kind in ("ed25519", "age"):
        assert read(path).opened(Identities((keys[kind],))) == CONTENTS
    refused(lambda: PublicKeys.of([""], []), "RecipientInvalid")


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "age"])
def test_the_holder_of_a_private_key_reads_it(tmp_path: Path, keys: dict[str, Path], kind: str) -> None:
    path = made(tmp_path / "b", to(keys["locked"], keys[kind]))
    assert read(path).opened(Identities((keys[kind],))) == CONTENTS
    other = keys["age" if kind != "age" else "rsa"]
    assert "does not decrypt it" in refused(lambda: read(path).opened(Identities((other,))), "BackupLocked").message
    assert read(path).opened(Identities((other, keys[kind]))) == CONTENTS


def test_a_key_with_a_passphrase_is_asked_for_it(tmp_path: Path, keys: dict[str, Path]) -> None:
    path = made(tmp_path / "b", to(keys["locked"]))
    asked: list[Path] = []

    def answer(key: Path, text: str | None = "open it") -> str | None:
        asked.append(key)
        return text

    assert read(path).opened(Identities((keys["locked"],), answer)) == CONTENTS
    assert asked == [keys["locked"]]
    for wrong in (None, "another", ""):
        given = Identities((keys["locked"],), lambda key, wrong=wrong: answer(key, wrong))
        refused(lambda given=given: read(path).opened(given), "IdentityInvalid")


def test_a_wrong_passphrase_of_a_key_that_is_kept_by_aes_gcm(tmp_path: Path) -> None:
    key = keygen(tmp_path / "key", "ed25519", "-Z", "aes256-gcm@openssh.com", passphrase="open it")
    path = made(tmp_path / "b", to(key))
    assert read(path).opened(Identities((key,), lambda _: "open it")) == CONTENTS
    wrong = refused(lambda: read(path).opened(Identities((key,), lambda _: "another")), "IdentityInvalid")
    assert "the passphrase is wrong" in wrong.message


def test_a_recipient_that_is_no_text() -> None:
    refused(lambda: PublicKeys.of(["\udcff"], []), "RecipientInvalid")  # an argument that is not UTF-8


@pytest.mark.slow
def test_a_passphrase_opens_it_and_no_other(tmp_path: Path) -> None:
    path = made(tmp_path / "b", PASSPHRASE)
    assert read(path).opened(PASSPHRASE) == CONTENTS
    refused(lambda: read(path).opened(Passphrase("wrong")), "BackupLocked")
    assert "correct" not in repr(PASSPHRASE)


def test_what_is_asked_for_names_the_key(tmp_path: Path, keys: dict[str, Path]) -> None:
    locked, plain = made(tmp_path / "b", to(keys["age"])), made(tmp_path / "c")
    error = refused(lambda: read(locked).opened(PASSPHRASE), "BackupKeyNeeded")
    assert (error.exit_code, public(keys["age"]).read_text().strip() in error.hint) == (2, True)
    refused(lambda: read(locked).opened(None), "BackupKeyNeeded")
    refused(lambda: read(plain).opened(PASSPHRASE), "BackupKeyNeeded")
    assert read(plain).opened(None) == CONTENTS


def test_nothing_of_the_secrets_can_be_seen_in_it(tmp_path: Path, keys: dict[str, Path]) -> None:
    held = SECRETS
    words = [getattr(held, name) for name in secrets._MADE if name != "s3_key_id"]
    words += [held.ca_key.splitlines()[1], *(key[:64] for key in held.node_keys.values()), "team/app", "10.0.0.12"]
    for lock in (to(keys["age"]), PASSPHRASE):
        whole = made(tmp_path / "b", lock, sign=keys["ed25519"]).read_bytes()
        assert [word for word in words if word.encode() in whole] == []
    assert all(word.encode() in made(tmp_path / "b").read_bytes() for word in words[:5]), "else it proves nothing"


@pytest.mark.parametrize("encrypted", [False, True])
def test_only_its_owner_may_read_it(tmp_path: Path, keys: dict[str, Path], encrypted: bool) -> None:
    path = tmp_path / "b"
    path.write_text("what was there")
    path.chmod(0o644)
    made(path, to(keys["age"]) if encrypted else None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    with tarfile.open(path) as archive:
        assert {entry.mode for entry in archive} == {0o600}


def test_a_run_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_text("what was there")
    refused(lambda: made(path, sign=tmp_path / "nowhere"), "KeyUnreadable")
    assert path.read_text() == "what was there"
    refused(lambda: made(tmp_path), "OutputInvalid")


def test_one_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b"
    path.write_text("what was there")
    monkeypatch.setattr(file, "_LARGEST", 2**14)
    refused(lambda: made(path), "BackupTooLarge")
    assert path.read_text() == "what was there"


# ---- the keys on the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["age1abc", "ssh-ed25519 AAAA", "words", "AGE-SECRET-KEY-1QQ"])
def test_what_is_no_public_key_is_refused(key: str) -> None:
    error = refused(lambda: PublicKeys.of((key,), ()), "RecipientInvalid")
    assert error.exit_code == 2
    assert ("SECRET" in error.message) is False


def test_keys_that_only_sign_are_refused_and_files_are_read_line_by_line(tmp_path: Path, keys: dict[str, Path]) -> None:
    error = refused(lambda: to(keys["ecdsa"]), "RecipientInvalid")
    assert "ecdsa.pub, line 1: " in error.message
    assert "ECDSA" in error.hint
    listed = tmp_path / "all"
    age, rsa = (public(keys[kind]).read_text() for kind in ("age", "rsa"))
    listed.write_text(f"# of the site\n\n{age}  {rsa}")
    assert PublicKeys.of((age.strip(),), (listed,)).keys == (age.strip(), rsa.strip())
    listed.write_text("correct horse battery staple\n")  # that of --passphrase-file
    assert "horse" not in refused(lambda: PublicKeys.of((), (listed,)), "RecipientInvalid").message
    listed.write_text("# nobody\n")
    refused(lambda: PublicKeys.of((), (listed,)), "RecipientInvalid")
    refused(lambda: PublicKeys.of((), (tmp_path / "nowhere",)), "KeyUnreadable")


def test_what_is_no_private_key_is_refused(tmp_path: Path, keys: dict[str, Path]) -> None:
    backup = read(made(tmp_path / "b", to(keys["age"])))
    wrong = tmp_path / "wrong"
    for text in ("", "# nothing\n", "AGE-SECRET-KEY-1QQ\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"):
        wrong.write_text(text)
        refused(lambda: backup.opened(Identities((wrong,))), "IdentityInvalid")
    refused(lambda: backup.opened(Identities((public(keys["ed25519"]),))), "IdentityInvalid")
    refused(lambda: backup.opened(Identities((tmp_path / "nowhere",))), "KeyUnreadable")


def test_a_passphrase_is_the_first_line_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\nthe second line\n")
    assert Passphrase.in_file(path) == PASSPHRASE
    for text in ("", "\nsecond\n"):
        path.write_text(text)
        refused(lambda: Passphrase.in_file(path), "PassphraseInvalid")


# ---- who vouches for it ---------------------------------------------------------------------------------------------


def test_the_ca_of_the_cluster_vouches_for_it(tmp_path: Path) -> None:
    path, ca = made(tmp_path / "b"), tmp_path / "ca.crt"
    ca.write_text(authority().certificate)
    read(path).require_ca(ca)
    ca.write_text(pki.make_ca("registry").certificate)
    refused(lambda: read(path).require_ca(ca), "BackupSignatureInvalid")
    ca.write_text("no certificate")
    refused(lambda: read(path).require_ca(ca), "KeyUnreadable")


def test_openssl_and_tar_check_it_without_this_program(tmp_path: Path) -> None:
    path = made(tmp_path / "b")
    subprocess.run(["tar", "-xf", path], cwd=tmp_path, check=True)
    (tmp_path / "ca.crt").write_text(authority().certificate)
    key = subprocess.run(
        ["openssl", "x509", "-in", "ca.crt", "-pubkey", "-noout"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    (tmp_path / "ca.pub").write_bytes(key)
    words = ["openssl", "dgst", "-sha256", "-verify", "ca.pub", "-signature", "index.json.ca-sig", "index.json"]
    assert b"Verified OK" in subprocess.run(words, cwd=tmp_path, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-xf", "content.tar"], cwd=tmp_path, check=True)
    assert (tmp_path / "secrets.json").read_bytes() == SECRETS.to_json()
    assert (tmp_path / "cluster.yaml").read_text() == CONTENTS.cluster_file
    shown = subprocess.run(
        ["openssl", "x509", "-in", "ca.crt", "-fingerprint", "-sha256", "-noout"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert pki.printed_fingerprint(authority().certificate) in shown.stdout


def test_an_ssh_key_vouches_for_it_where_it_is_asked_for(tmp_path: Path, keys: dict[str, Path]) -> None:
    signed, unsigned = made(tmp_path / "b", sign=keys["ecdsa"]), made(tmp_path / "c")
    assert read(signed).signer(public(keys["ecdsa"])).startswith("ECDSA key SHA256:")
    refused(lambda: read(signed).signer(public(keys["rsa"])), "BackupSignatureInvalid")
    refused(lambda: read(unsigned).signer(public(keys["ecdsa"])), "BackupUnsigned")
    # A signature of a bundle is none of a backup.
    parts = members(signed)
    other = signing.sign(parts[file.INDEX], keys["ecdsa"])
    signed.write_bytes(file.pack({**parts, file.SSH_SIGNATURE: other}))
    refused(lambda: read(signed).signer(public(keys["ecdsa"])), "BackupSignatureInvalid")


def tampered(path: Path, **changes: bytes | None) -> Path:
    """The backup with other members, by names with _ for every other sign."""
    parts = members(path)
    for name in list(parts):
        key = name.replace(".", "_").replace("-", "_")
        if key in changes:
            new = changes[key]
            parts = {one: content for one, content in parts.items() if one != name or new is not None}
            if new is not None:
                parts[name] = new
    path.write_bytes(file.pack(parts))
    return path


def test_what_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "b")
    content = members(path)["content.tar"]
    refused(lambda: read(tampered(path, content_tar=content[:-1] + b"x")), "BackupDamaged")
    index = json.loads(members(made(path))["index.json"])
    refused(lambda: read(tampered(path, index_json=json.dumps({**index, "made": "now"}).encode())),
            "BackupSignatureInvalid")  # fmt: skip
    # With a CA of somebody else: whole in itself, and not that of the secrets.
    other = pki.make_ca("registry")
    forged = json.dumps({**index, "ca": other.certificate}).encode()
    tampered(made(path), index_json=forged, index_json_ca_sig=pki.sign(other, forged))
    refused(lambda: read(path).opened(None), "BackupDamaged")
    for missing in ("index_json", "index_json_ca_sig", "content_tar"):
        refused(lambda missing=missing: read(tampered(made(path), **{missing: None})), "BackupDamaged")


def test_a_ca_whose_key_is_another_is_refused(tmp_path: Path) -> None:
    broken = replace(CONTENTS, secrets=replace(SECRETS, ca_key=pki.make_ca("registry").key).found)
    write(tmp_path / "b", broken, None)
    refused(lambda: read(tmp_path / "b"), "BackupSignatureInvalid")


def test_a_ca_of_a_curve_that_is_unknown_is_damaged(tmp_path: Path) -> None:
    """As a single bit makes one."""
    der = x509.load_pem_x509_certificate(CONTENTS.ca.certificate.encode()).public_bytes(serialization.Encoding.DER)
    curve = bytes.fromhex("06082a8648ce3d030107")
    spoilt = ssl.DER_cert_to_PEM_cert(der.replace(curve, curve[:-1] + b"\x6f"))
    path = made(tmp_path / "b")
    index = json.dumps(json.loads(members(path)["index.json"]) | {"ca": spoilt}).encode()
    refused(lambda: read(tampered(path, index_json=index)), "BackupDamaged")
    assert not pki.is_of(spoilt, x509.load_pem_x509_certificate(CONTENTS.ca.certificate.encode()))


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b"
    whole = made(path).read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2], file.pack({"index.json": b"{}"}), whole[:700]):
        path.write_bytes(content)
        refused(lambda: read(path), "BackupDamaged")
    index = json.loads(members(made(path))["index.json"])
    for changed in (b"no json", b"{}", json.dumps({**index, "nodes": "many"}).encode(),
                    json.dumps({**index, "ca": "none"}).encode()):  # fmt: skip
        refused(lambda changed=changed: read(tampered(made(path), index_json=changed)), "BackupDamaged")
    refused(lambda: read(tmp_path / "nowhere"), "BackupMissing")
    refused(lambda: read(tmp_path), "BackupMissing")
    bundle = made_bundle(tmp_path / "bundle.tar")
    assert "--bundle" in refused(lambda: read(bundle), "BackupMissing").hint, "not that it is damaged"


# ---- of another release ---------------------------------------------------------------------------------------------


def sample() -> Backup:
    return read(SAMPLES / "backup.tar")


def test_what_release_0_2_wrote_is_read() -> None:
    found = sample()
    assert (found.index.cluster, found.index.release, found.index.nodes, found.index.images) == (
        "registry",
        "0.2.0",
        3,
        2,
    )
    contents = found.opened(Identities((SAMPLES / "backup.key",)))
    assert [one.name for one in contents.members] == list(NAMES)
    assert contents.images == CONTENTS.images
    assert contents.pins == CONTENTS.pins
    assert contents.programs == CONTENTS.programs
    assert contents.secrets.values["push_password"] == "the-push-password"
    assert config.parse(contents.cluster_file, "the backup").metadata.name == "registry"
    passphrase = read(SAMPLES / "backup-passphrase.tar")
    assert passphrase.opened(PASSPHRASE).images == CONTENTS.images
    assert passphrase.index.encryption == "passphrase"


def resigned(path: Path, **changes: Any) -> Path:
    """The backup with other keys in its index, signed again by its CA."""
    parts = members(path)
    index = json.dumps({**json.loads(parts["index.json"]), **changes}).encode()
    path.write_bytes(file.pack({**parts, "index.json": index, "index.json.ca-sig": pki.sign(authority(), index)}))
    return path


def test_a_newer_release_may_add_and_may_ask_for_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "b"
    assert read(resigned(made(path), later={"deep": 1})).opened(None) == CONTENTS
    newer = {"version": 9, "minReader": 1, "minWriter": 9}
    assert read(resigned(made(path), format=newer)).opened(None) == CONTENTS
    with pytest.raises(NewerFormat, match="a newer release wrote the backup"):
        read(resigned(made(path), format={**newer, "minReader": 9}))
    error = refused(lambda: read(resigned(made(path), encryption="quantum")).opened(None), "NewerFormat")
    assert "does not know the encryption quantum" in error.message
    assert error.hint == "use a newer kubeadm-registry"


def test_the_list_of_members_is_in_it_if_there_is_one(tmp_path: Path) -> None:
    assert "members.json" not in CONTENTS.files()
    assert sample().opened(Identities((SAMPLES / "backup.key",))).recorded is None
    assert CONTENTS.listed == Members(1, {name: f"10.0.0.1{number}" for number, name in enumerate(NAMES, 1)})
    content = (SAMPLES.parent / "members-earlier.json").read_bytes()
    found = Contents.of({**CONTENTS.files(), "members.json": content})
    write(tmp_path / "b", found, None)
    again = read(tmp_path / "b").opened(None)
    assert again.files()["members.json"] == content
    assert again.listed.left == (("cp-2", "10.0.0.12"), ("cp-2", "10.0.0.22"), ("cp-4", "10.0.0.14"))
    for wrong, error in ((b"{}", ValueError), (content.replace(b'"minReader": 1', b'"minReader": 9'), NewerFormat)):
        with pytest.raises(error, match=r"members\.json"):
            Contents.of({**CONTENTS.files(), "members.json": wrong})


def test_lists_that_are_missing_are_empty_and_others_are_named(tmp_path: Path) -> None:
    files = CONTENTS.files()
    lists = json.loads(files["inventory.json"])
    bare = {**files, "inventory.json": b"{}", "more": b"of a newer release"}
    assert Contents.of(bare) == replace(CONTENTS, members=(), programs=(), images=None, pins=())
    lists["images"][1]["digest"] = 5
    with pytest.raises(ValueError, match=r"inventory.json: images.1.digest: "):
        Contents.of({**files, "inventory.json": json.dumps(lists).encode()})
    for name in files:
        with pytest.raises(ValueError, match=f"{name} is missing"):
            Contents.of({key: value for key, value in files.items() if key != name})
    for key in secrets._IDENTITY:
        less = {name: value for name, value in SECRETS.found.values.items() if name != key}
        with pytest.raises(ValueError, match=r"secrets\.json: .*" + ("the generation" if key == "generation" else key)):
            Contents.of({**files, "secrets.json": json.dumps(less).encode()})


@pytest.mark.parametrize("key", [*secrets._MADE, "made", "node_keys"])
def test_a_secret_of_a_later_release_may_be_missing(tmp_path: Path, key: str) -> None:
    less = Found({name: value for name, value in SECRETS.found.values.items() if name != key})
    write(tmp_path / "b", replace(CONTENTS, secrets=less), None)
    assert read(tmp_path / "b").opened(None).secrets.values == less.values


def test_a_link_in_it_is_nothing() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("index.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        archive.addfile(link)
    assert file.unpack(buffer.getvalue()) == {}


def test_a_machine_that_looks_too_slow_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyrage measures how fast it is before each decryption, also while all else is busy."""
    asked: list[int] = []

    def decrypt(answers: int) -> Callable[[bytes, str], bytes]:
        def one(content: bytes, text: str) -> bytes:
            asked.append(1)
            if len(asked) < answers:
                raise pyrage.DecryptError("Excessive work parameter for passphrase.")
            return b"opened"

        return one

    monkeypatch.setattr("pyrage.passphrase.decrypt", decrypt(4))
    assert PASSPHRASE.decrypt(b"") == b"opened"
    asked.clear()
    monkeypatch.setattr("pyrage.passphrase.decrypt", decrypt(100))
    with pytest.raises(BackupError, match="too slow, or too busy") as caught:
        PASSPHRASE.decrypt(b"")
    assert caught.value.code == "BackupLocked"
    assert len(asked) == 5
