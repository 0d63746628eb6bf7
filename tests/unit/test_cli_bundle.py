"""The commands that decide whether a bundle is trusted: signed by whom, made since what, and checked before what."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeadm_registry import config, secrets
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.terminal import DEFAULT_BUNDLE
from kubeadm_registry.components.programs import _UPLOADED, Installed
from kubeadm_registry.engine.report import Silent
from kubeadm_registry.errors import BundleError
from kubeadm_registry.transport.host import Host
from tests.unit.bundle_files import contents, image, script, write_layout
from tests.unit.command_line import Terminal, failed, lines
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fake_upstream import FakeUpstream, serving
from tests.unit.fakes import FakeTransport
from tests.unit.test_bundle_signing import keygen, public

pytest_plugins = ["tests.unit.command_line"]

PAUSE = "registry.k8s.io/pause:3.10"
COMMANDS = [("init",), ("init", "phase", "vip"), ("preflight",), ("seed",), ("images", "check")]


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return keygen(folder / "ours"), keygen(folder / "other")


def create(run: Terminal, name: str, layer: bytes, *arguments: str) -> None:
    write_layout(run.folder / f"{name}.layout", image(PAUSE, layer))
    script(run.folder / "garage")
    common = ("--with", "garage", "--program", "garage=./garage", "--images-from", f"{name}.layout")
    made = run("bundle", "create", "-o", name, *common, *arguments)
    assert made.exit_code == 0, made.output


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_key_is_asked_before_any_server(
    run: Terminal, unreachable: list[str], keys: tuple[Path, Path], words: tuple[str, ...]
) -> None:  # fmt: skip
    run.write(config.SMALLEST)
    create(run, "x.tar", b"layer")
    given, ours = (*words, "--bundle", "x.tar", "-o", "json"), str(public(keys[0]))
    for signer, code in [(None, "BundleUnsigned"), (keys[1], "BundleSignatureInvalid")]:
        if signer:
            assert run("bundle", "sign", "x.tar", "--key", str(signer)).exit_code == 0
        for result in (run(*given, "--key", ours), run(*given, env={"KUBEADM_REGISTRY_BUNDLE_KEY": ours})):
            failed(result, 1)
            assert lines(result)[-1]["code"] == code
    failed(run(*given, "--key", "nowhere.pub"), 2)
    assert not unreachable, "nobody was contacted"
    run("bundle", "sign", "x.tar", "--key", str(keys[0]))
    failed(run(*given, "--key", ours), 4)
    assert unreachable, "now they are"


@pytest.mark.parametrize("words", [one for one in COMMANDS if one != ("images", "check")], ids=" ".join)
def test_the_variable_counts_for_the_bundle_in_the_folder_too(
    run: Terminal, unreachable: list[str], keys: tuple[Path, Path], words: tuple[str, ...]
) -> None:  # fmt: skip
    run.write(config.SMALLEST)
    create(run, str(DEFAULT_BUNDLE), b"layer")
    given = (*words, "-o", "json")
    for value, code, exit_code in [(str(public(keys[0])), "BundleUnsigned", 1), ("", "KeyUnreadable", 2)]:
        result = run(*given, env={"KUBEADM_REGISTRY_BUNDLE_KEY": value})
        failed(result, exit_code)
        assert lines(result)[-1]["code"] == code
    assert not unreachable, "nobody was contacted"
    failed(run(*given), 4)
    assert unreachable


@pytest.mark.parametrize(
    "words",
    [
        ("verify",), ("reset", "--yes"), ("vip", "move"), ("retention", "timer", "disable"), ("retention", "history"),
        ("images", "list"), ("images", "check"), ("images", "collect"), ("backup", "--no-encryption", "-o", "file"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_installs_nothing_looks_at_no_bundle_in_the_folder(
    run: Terminal, unreachable: list[str], words: tuple[str, ...]
) -> None:
    run.write(config.SMALLEST)
    (run.folder / DEFAULT_BUNDLE).write_bytes(b"one that is being copied here")
    failed(run(*words, env={"KUBEADM_REGISTRY_BUNDLE_KEY": ""}), 4)
    assert unreachable


def test_steps_are_done_by_the_programs_that_run(run: Terminal, servers: FakeCluster) -> None:
    """A bundle for the next upgrade has programs at paths that are not on the nodes."""
    create(run, str(DEFAULT_BUNDLE), b"layer")
    for server in servers.servers.values():
        server.put(secrets.PATH, servers.cluster.secrets.to_json(), 0o600)
    with terminal.registry(None, Silent()) as (cluster, _, _):
        assert (cluster.programs, cluster.bundle) == (servers.programs, None)


def test_an_empty_variable_is_no_key(run: Terminal, keys: tuple[Path, Path]) -> None:
    """Whoever writes KUBEADM_REGISTRY_BUNDLE_KEY=$FILE and has no FILE wants a check, and does not get one."""
    create(run, "x.tar", b"layer", "--sign", str(keys[0]))
    empty = {"KUBEADM_REGISTRY_BUNDLE_KEY": ""}
    refused = run("bundle", "verify", "x.tar", "-o", "json", env=empty)
    failed(refused, 2)
    assert lines(refused)[-1]["code"] == "KeyUnreadable"
    assert "unset" in lines(refused)[-1]["hint"]
    assert run("bundle", "verify", "x.tar", "--key", str(public(keys[0])), env=empty).exit_code == 0
    refused = run("bundle", "verify", "x.tar", "--key", "", "-o", "json")
    failed(refused, 2)
    assert lines(refused)[-1]["code"] == "KeyUnreadable"


def test_only_a_signed_bundle_is_served(
    run: Terminal, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from kubeadm_registry.images import rescue
    from tests.unit.fake_cluster import authority

    (run.folder / "cert.pem").write_text(authority().certificate + authority().key)
    create(run, "x.tar", b"layer")
    served: list[rescue.Server] = []

    def ended_at_once(server: rescue.Server) -> None:
        served.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(rescue.Server, "serve_forever", ended_at_once)
    words = ("rescue", "serve", "x.tar", "--listen", "127.0.0.1:0", "--cert", "cert.pem", "-o", "json")
    ours = str(public(keys[0]))
    for signer, code in [(None, "BundleUnsigned"), (keys[1], "BundleSignatureInvalid")]:
        if signer:
            assert run("bundle", "sign", "x.tar", "--key", str(signer)).exit_code == 0
        for result in (run(*words, "--bundle-key", ours), run(*words, env={"KUBEADM_REGISTRY_BUNDLE_KEY": ours})):
            failed(result, 1)
            assert lines(result)[-1]["code"] == code
    failed(run(*words, env={"KUBEADM_REGISTRY_BUNDLE_KEY": ""}), 2)
    assert not served
    run("bundle", "sign", "x.tar", "--key", str(keys[0]))
    result = run(*words, env={"KUBEADM_REGISTRY_BUNDLE_KEY": ours})
    assert result.exit_code == 0, result.output
    assert "x.tar is signed by ED25519 key SHA256:" in result.stdout
    assert len(served) == 1


def test_signed_verified_compared(run: Terminal, keys: tuple[Path, Path]) -> None:
    ours = str(public(keys[0]))
    create(run, "old.tar", b"old" * 1000, "--sign", str(keys[0]))
    create(run, "new.tar", b"new" * 1000, "--since", "old.tar")
    verified = run("bundle", "verify", "old.tar", "--key", ours)
    assert verified.exit_code == 0
    assert "signed by ED25519 key SHA256:" in verified.stdout
    failed(run("bundle", "verify", "new.tar", env={"KUBEADM_REGISTRY_BUNDLE_KEY": ours}), 1)
    [signed] = lines(run("bundle", "sign", "new.tar", "--key", str(keys[0]), "-o", "json"))
    [shown] = lines(run("bundle", "inspect", "new.tar", "-o", "json"))
    assert (signed["index"], shown["signed"], shown["sequence"]) == (shown["index"], True, 1)
    assert "delta    number 1, based on sha256:" in run("bundle", "inspect", "new.tar").stdout
    assert run("bundle", "verify", "new.tar", "--key", ours, "--base", "old.tar").exit_code == 0
    wrong = run("bundle", "verify", "new.tar", "--base", "new.tar", "-o", "json")
    failed(wrong, 1)
    assert lines(wrong)[-1]["code"] == "BundleBaseMissing"
    text = run("bundle", "diff", "old.tar", "new.tar").stdout
    assert f"~ image    {PAUSE}  sha256:" in text
    assert "new.tar adds 0.0 MB to old.tar" in text
    [found] = lines(run("bundle", "diff", "old.tar", "new.tar", "-o", "json"))
    assert [item["name"] for item in found["changed"]] == [PAUSE]
    failed(run("bundle", "sign", "new.tar", "--key", "nowhere"), 2)


def test_a_delta_is_not_served(run: Terminal) -> None:
    from tests.unit.fake_cluster import authority

    (run.folder / "cert.pem").write_text(authority().certificate + authority().key)
    create(run, "old.tar", b"old")
    create(run, "new.tar", b"new", "--since", "old.tar")
    refused = run("rescue", "serve", "new.tar", "--listen", "127.0.0.1:0", "--cert", "cert.pem", "-o", "json")
    failed(refused, 2)
    assert lines(refused)[-1]["code"] == "BundleBaseMissing"


def test_programs_that_a_delta_leaves_out_are_on_the_servers(run: Terminal) -> None:
    """init with a delta needs of the base's programs only that they were installed."""
    create(run, "old.tar", b"old")
    create(run, "new.tar", b"new", "--since", "old.tar")
    with Bundle.open(run.folder / "new.tar") as delta:
        garage = delta.programs["garage"]
        server = FakeTransport()
        host = Host("cp-1", "10.0.0.11", server)
        change = Installed(garage, delta)
        server.answer("sh", "-c", _UPLOADED, with_=1)
        assert change.diff(host)
        with pytest.raises(BundleError) as caught:
            change.apply(host)
        assert caught.value.code == "BundleBaseMissing"
        assert "program/garage:2.3.0" in caught.value.message
        server.put(f"{garage.prefix}/.digest", garage.digest.removeprefix("sha256:") + "\n")
        assert change.diff(host) is None
    assert "unpack.sh" not in contents(run.folder / "new.tar")


@pytest.mark.parametrize("form", [("-o", "json"), ("--output", "json"), ("--output=json",), ("--format", "json")])
@pytest.mark.parametrize("file", [("-o", "x.tar"), ("-ox.tar",), ("--output-file", "x.tar")])
def test_o_means_the_format_and_may_name_a_file(
    run: Terminal, form: tuple[str, ...], file: tuple[str, ...]
) -> None:  # fmt: skip
    script(run.folder / "garage")
    common = ("bundle", "create", "--with", "garage", "--program", "garage=./garage")
    for arguments in ((*form, *file), (*file, *form)):
        assert lines(run(*common, *arguments))[-1]["path"] == "x.tar"
        assert sorted(path.name for path in run.folder.iterdir()) == ["garage", "x.tar"]
    assert run(*common, *file).stdout.splitlines()[-1].startswith("x.tar: ")
    assert run(*common, "-o", "./json").stdout.splitlines()[-1].startswith("json: ")
    twice = run(*common, *file, "-o", "y.tar")
    failed(twice, 2)
    assert "the output file is named twice" in twice.stderr
    assert not (run.folder / "y.tar").exists()


def test_images_that_a_controller_is_told_of_are_named(run: Terminal) -> None:
    """A bundle without them is whole, and a pod that the controller makes has no image."""
    with serving(FakeUpstream()) as upstream:
        for name in ("a", "c"):
            upstream.image(name, "v1", b"layer")
        here = upstream.host
        (run.folder / "pods.yaml").write_text(
            f"containers: [{{image: '{here}/a:v1', args: [--solver={here}/b:v1, '--other={here}/c:v1']}}]\n"
        )
        (run.folder / "auth.json").write_text("{}")
        words = ("bundle", "create", "--images-only", "-o", "x.tar", "--images-from", "pods.yaml", "--image")
        env = {"REGISTRY_AUTH_FILE": str(run.folder / "auth.json"), "XDG_CACHE_HOME": str(run.folder / "cache")}
        told = run(*words, f"{here}/c:v1", "-o", "json", env=env)
        assert told.exit_code == 0, told.output
        [warning] = [one for one in lines(told) if one.get("level") == "warning"]
        assert f"not included, but named in arguments or variables of containers: {here}/b:v1;" in warning["message"]
