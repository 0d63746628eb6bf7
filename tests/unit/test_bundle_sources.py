"""Programs from upstream releases and from distribution packages, without a network."""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from bundle_files import Said, context, elf, tar

from kubeadm_registry.bundle.catalogue import Packages, catalogue, known, parse, version_in
from kubeadm_registry.bundle.make import choose, private
from kubeadm_registry.bundle.make.context import BuildContext, Mirror, command, default_cache, locked, this_architecture
from kubeadm_registry.bundle.make.debian import closure, parse_packages, sources, unpack
from kubeadm_registry.bundle.make.elf import read
from kubeadm_registry.bundle.make.sources import Built, FromRelease
from kubeadm_registry.bundle.programs import prefix_of, slug
from kubeadm_registry.errors import BundleError

Answer = httpx.Response | Callable[[], httpx.Response]

ZOT = "https://github.com/project-zot/zot/releases/download/v2.1.20"
ASSET = f"{ZOT}/zot-linux-{this_architecture()}-minimal"
SUMS = f"{ZOT}/checksums.sha256.txt"


class Upstream:
    """Answers for addresses, and the log of what was asked."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        answer = self.answers.get(str(request.url), httpx.Response(404))
        return (
            answer()
            if callable(answer)
            else httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        )


def build(tmp_path: Path, name: str, answers: Mapping[str, Answer], **accepted: str) -> tuple[Built, Upstream]:
    upstream = Upstream(answers)
    bench = context(tmp_path, client=upstream.client)
    return choose([name], accepted=accepted)[name].build(name, fresh(bench)), upstream


def fresh(bench: BuildContext) -> BuildContext:
    """Give the context a scratch directory that no build has used; the cache stays."""
    number = len(list(bench.scratch.iterdir()))
    return BuildContext(
        architecture=bench.architecture,
        scratch=bench.new_directory(str(number)),
        cache=bench.cache,
        client=bench.client,
    )


def sums(content: bytes, name: str = ASSET.rpartition("/")[2]) -> httpx.Response:
    other = "0" * 64
    line = f"{hashlib.sha256(content).hexdigest()} *{name}"
    return httpx.Response(200, text=f"{other} *zli-linux-amd64\n{line}\n{other} *zot-linux-riscv64\n")


def refusal(tmp_path: Path, name: str, answers: Mapping[str, Answer], **accepted: str) -> BundleError:
    with pytest.raises(BundleError) as caught:
        build(tmp_path, name, answers, **accepted)
    assert f"--program {name}=" in caught.value.hint
    assert not list((tmp_path / "cache").rglob(".new.*"))
    return caught.value


def test_a_release_is_checked_by_its_published_sum(tmp_path: Path) -> None:
    content = elf()
    answers = {SUMS: sums(content), ASSET: httpx.Response(200, content=content)}
    built, upstream = build(tmp_path, "zot", answers)
    assert upstream.asked == [SUMS, ASSET]
    assert built.program.version == "2.1.20"
    assert built.program.source.kind == "upstream-release"
    assert built.program.source.origin == ASSET
    assert built.program.source.checked == (
        f"the checksum published at {SUMS}: sha256:{hashlib.sha256(content).hexdigest()}"
    )
    again, upstream = build(tmp_path, "zot", answers)
    assert upstream.asked == [SUMS]  # the file itself is in the cache
    assert again.program == built.program


def test_a_cached_download_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    content = elf()
    answers = {SUMS: sums(content), ASSET: httpx.Response(200, content=content)}
    build(tmp_path, "zot", answers)
    kept = tmp_path / "cache/downloads/sha256" / hashlib.sha256(content).hexdigest()
    kept.write_bytes(b"damaged")
    _, upstream = build(tmp_path, "zot", answers)
    assert upstream.asked == [SUMS, ASSET]
    assert kept.read_bytes() == content


def test_redirects_are_followed(tmp_path: Path) -> None:
    content = elf()
    elsewhere = "https://objects.example/zot"
    answers = {
        SUMS: sums(content),
        ASSET: httpx.Response(302, headers={"location": elsewhere}),
        elsewhere: httpx.Response(200, content=content),
    }
    built, _ = build(tmp_path, "zot", answers)
    assert built.program.source.origin == ASSET


def test_redirects_end_somewhere_and_stay_encrypted(tmp_path: Path) -> None:
    loop = {SUMS: httpx.Response(302, headers={"location": SUMS})}
    assert "redirected more than" in refusal(tmp_path, "zot", loop).message
    plain = {SUMS: httpx.Response(302, headers={"location": "http://objects.example/sums"})}
    assert "not https" in refusal(tmp_path, "zot", plain).message


def test_another_content_than_published_is_refused(tmp_path: Path) -> None:
    answers = {SUMS: sums(elf()), ASSET: httpx.Response(200, content=elf() + b"x")}
    error = refusal(tmp_path, "zot", answers)
    assert error.code == "BundleInputRefused"
    assert "instead of" in error.message


def test_sums_that_do_not_name_the_file_once_are_refused(tmp_path: Path) -> None:
    name = ASSET.rpartition("/")[2]
    for text in [
        "",
        f"{'1' * 64} *{name}.sig\n{'2' * 64} other\n",
        f"{'1' * 64} {name}\n{'2' * 64} {name}\n",
        f"12 {name}",
    ]:
        assert "SHA-256 sums" in refusal(tmp_path, "zot", {SUMS: httpx.Response(200, text=text)}).message


def test_an_upstream_that_fails_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "zot", {})
    assert error.code == "BundleInputUnavailable"
    assert f"{SUMS} returned status 404" in error.message

    def broken() -> httpx.Response:
        raise httpx.ConnectError("no route")

    assert refusal(tmp_path, "zot", {SUMS: broken}).message == f"cannot download {SUMS}: no route"
    there = "https://objects.example/sums?signature=x"
    moved = {SUMS: httpx.Response(302, headers={"location": there}), there: broken}
    told = refusal(tmp_path, "zot", moved).message
    assert told == f"cannot download {SUMS}, redirected to objects.example: no route"


def test_a_list_of_sums_without_end_is_refused(tmp_path: Path) -> None:
    assert (
        "more than" in refusal(tmp_path, "zot", {SUMS: httpx.Response(200, content=b"x" * (1024 * 1024 + 1))}).message
    )


def test_a_release_in_an_archive(tmp_path: Path) -> None:
    entry = catalogue()["distribution3"].release
    assert entry is not None
    assert entry.checksums is not None
    url, checksums = (entry.fill(address, this_architecture()) for address in (entry.url, entry.checksums))
    content = gzip.compress(tar(("LICENSE", b"x"), ("registry", elf())))
    only = httpx.Response(200, text=hashlib.sha256(content).hexdigest() + "\n")
    built, _ = build(tmp_path, "distribution3", {checksums: only, url: httpx.Response(200, content=content)})
    assert built.program.entry_point == "bin/registry"
    empty = gzip.compress(tar(("LICENSE", b"x")))
    only = httpx.Response(200, text=hashlib.sha256(empty).hexdigest())
    error = refusal(tmp_path, "distribution3", {checksums: only, url: httpx.Response(200, content=empty)})
    assert "has no file registry" in error.message


def test_a_release_without_a_sum_needs_somebody_to_vouch_for_it(tmp_path: Path) -> None:
    error = refusal(tmp_path, "garage", {})
    assert error.code == "BundleInputRefused"
    assert "--accept-digest garage=sha256:" in error.hint
    content = elf()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    release = catalogue()["garage"].release
    assert release is not None
    url = release.fill(release.url, this_architecture())
    built, _ = build(tmp_path, "garage", {url: httpx.Response(200, content=content)}, garage=digest)
    assert built.program.source.checked == f"a digest accepted by the user: {digest}"
    other = "sha256:" + "0" * 64
    assert (
        "instead of" in refusal(tmp_path, "garage", {url: httpx.Response(200, content=content)}, garage=other).message
    )


def test_an_architecture_that_is_not_published_is_said(tmp_path: Path) -> None:
    release = catalogue()["zot"].release
    assert release is not None
    source = FromRelease(release.model_copy(update={"architectures": {}}))
    with pytest.raises(BundleError, match="not published"):
        source.build("zot", context(tmp_path))


# The catalogue.


def test_the_catalogue_has_what_the_registry_is_built_of() -> None:
    assert {"garage", "zot", "distribution", "haproxy", "keepalived", "python"} <= catalogue().keys()
    known(catalogue())


def test_no_entry_is_fetched_from_a_place_that_is_not_encrypted() -> None:
    for entry in catalogue().values():
        if entry.release:
            assert set(entry.release.architectures) == {"amd64", "arm64"}
            for address in filter(None, (entry.release.url, entry.release.checksums)):
                assert entry.release.fill(address, "amd64").startswith("https://")
                assert "{" not in entry.release.fill(address, "arm64")


@pytest.mark.parametrize(
    "text",
    [
        "x: {summary: s, entry_point: bin/x, version: {arguments: [], pattern: '(.)'}}",
        "x: {summary: s, entry_point: ../x, version: {arguments: [], pattern: '(.)'}, packages: {}}",
        "x: {summary: s, entry_point: bin/x, version: {arguments: [], pattern: '.'}, packages: {}}",
        "x: {summary: s, entry_point: bin/x, version: {arguments: [], pattern: '(.)'}, "
        "release: {version: '1', url: 'http://x/y', architectures: {}}}",
        "x: {summary: s, entry_point: bin/x, version: {arguments: [], pattern: '(.)'}, "
        "release: {version: '1', url: 'https://x/y', architectures: {}, sha256: {amd64: abc}}}",
    ],
)
def test_a_wrong_catalogue_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse(text)


@pytest.mark.parametrize(
    ("name", "output", "version"),
    [
        ("garage", "garage v2.3.0 [features: k2v, lmdb]", "2.3.0"),
        ("garage", "garage cargo:2.3.0 [features: bundled-libs]", "2.3.0"),
        (
            "zot",
            '{"level":"info","distribution-spec":"1.1.1","commit":"v2.1.20-0-g1a2b","message":"version"}',
            "2.1.20",
        ),
        ("zot", '{"distribution-spec":"1.1.1","commit":"","message":"version"}', None),
        ("haproxy", "HAProxy version 3.0.11-1+deb13u5 2026/11/18 - https://haproxy.org/", "3.0.11-1+deb13u5"),
        ("keepalived", "Keepalived v2.3.3 (03/30,2025)", "2.3.3"),
        ("python", "Python 3.13.5", "3.13.5"),
        ("distribution", "/opt/x/docker-registry github.com/docker/distribution 2.8.3+ds1", "2.8.3+ds1"),
        ("distribution3", "./registry github.com/distribution/distribution/v3 v3.1.1", "3.1.1"),
    ],
)
def test_versions_are_found_in_what_programs_say(name: str, output: str, version: str | None) -> None:
    assert version_in(name, output) == version


def test_prefixes_are_paths_that_every_tool_can_take() -> None:
    assert slug("1:2.3.3-1~bpo+1") == "1_2.3.3-1_bpo+1"
    assert slug("../x") == "x"
    assert slug("") == "_"
    assert prefix_of("keepalived", "1:2.3.3-1", "amd64", "sha256:0123456789") == (
        "/opt/kubeadm-registry/programs/keepalived/1_2.3.3-1-amd64-01234567"
    )


# Distribution packages.

INDEX = """\
Package: haproxy
Version: 3.0.11-1
Section: net
Pre-Depends: init-system-helpers (>= 1.54~)
Depends: libc6 (>= 2.38), adduser, libssl3 (>= 3.2.0) | libressl, liblua5.4-0:any
Description: proxy
 SHA256: not a field
Filename: pool/h/haproxy.deb
SHA256: 1111

Package: libc6
Version: 2.41
Section: libs
Depends: libgcc-s1
Recommends: libnss-nis
Filename: pool/g/libc6.deb
SHA256: 2222

Package: libgcc-s1
Version: 14
Section: libs
Depends: libc6
Filename: pool/g/libgcc.deb
SHA256: 3333

Package: libssl3t64
Version: 3.5
Section: non-free/libs
Provides: libssl3 (= 3.5), other
Filename: pool/o/libssl.deb
SHA256: 4444

Package: liblua5.4-0
Version: 5.4
Section: libs
Filename: pool/l/lua.deb
SHA256: 5555

Package: adduser
Version: 3
Section: admin
Filename: pool/a/adduser.deb
SHA256: 6666

Package: virtual-only
Version: 1
"""


def test_the_closure_follows_libraries_only() -> None:
    packages = {package.name: package for package in parse_packages(INDEX)}
    assert "virtual-only" not in packages
    found = closure(["haproxy"], packages)
    assert [package.name for package in found] == ["haproxy", "libc6", "libgcc-s1", "liblua5.4-0", "libssl3t64"]
    assert found[0].sha256 == "1111"
    assert found[0].depends[2:] == (("adduser",), ("libssl3", "libressl"), ("liblua5.4-0",))
    with pytest.raises(BundleError, match="no package keepalived"):
        closure(["keepalived"], packages)


def test_sources_are_signed_and_of_one_release() -> None:
    text = sources(
        "trixie", "arm64", "https://mirror.example/debian", "https://mirror.example/security", Path("/k.gpg")
    )
    assert text.count("Signed-By: /k.gpg") == 2
    assert text.count("Architectures: arm64") == 2
    assert "Suites: trixie trixie-updates\n" in text
    assert "Suites: trixie-security\n" in text
    assert "trusted" not in text
    assert "security" not in sources("trixie", "arm64", "https://mirror.example/debian", "", Path("/k.gpg"))


def test_a_package_that_cannot_be_unpacked_has_no_room(tmp_path: Path) -> None:
    """Its digest is right; tar says "Wrote only 9728 of 10240 bytes", and the network has no part in it."""
    (tmp_path / "a.deb").write_bytes(b"the rest of it has no room")
    with pytest.raises(BundleError, match="dpkg-deb failed") as caught:
        unpack([tmp_path / "a.deb"], tmp_path / "root")
    assert caught.value.hint.startswith("free space in ")


def test_the_mirror_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIRROR", "SECURITY_MIRROR", "KEYRING"):
        monkeypatch.delenv(f"KUBEADM_REGISTRY_DEBIAN_{name}", raising=False)
    assert Mirror.from_environment() == Mirror()
    monkeypatch.setenv("KUBEADM_REGISTRY_DEBIAN_MIRROR", "https://mirror.example/debian")
    monkeypatch.setenv("KUBEADM_REGISTRY_DEBIAN_KEYRING", "/k.gpg")
    assert Mirror.from_environment() == Mirror(debian="https://mirror.example/debian", keyring=Path("/k.gpg"))


# ELF files and private trees.


def test_headers_of_elf_files(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf("arm64", interpreter="/lib/ld.so", needed=("libc.so.6", "libm.so.6"), rpath="/x"))
    headers = read(path)
    assert headers is not None
    assert (headers.architecture, headers.interpreter) == ("arm64", "/lib/ld.so")
    assert headers.needed == ("libc.so.6", "libm.so.6")
    assert headers.search_path == "/x"
    path.write_bytes(elf("riscv64"))
    headers = read(path)
    assert headers is not None
    assert (headers.architecture, headers.interpreter, headers.needed) == ("EM_RISCV", "", ())
    path.write_bytes(b"#!/bin/sh\n")
    assert read(path) is None


def test_every_cut_of_an_elf_file_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = elf(interpreter="/lib/ld.so", needed=("libc.so.6",), rpath="/x")
    path = tmp_path / "program"
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        try:
            read(path)
        except BundleError as error:
            assert error.code == "BundleInputRefused"


RECIPE = Packages(release="trixie", program="haproxy", files={"bin/haproxy": "usr/sbin/haproxy"})


def package_root(tmp_path: Path, files: Mapping[str, bytes | str]) -> Path:
    """Lay out unpacked packages; a text is a link's target."""
    root = tmp_path / "root"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(0o755)
    return root


def assemble(tmp_path: Path, root: Path, recipe: Packages = RECIPE) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    private.assemble(root, recipe, tree, "/opt/x", "amd64")
    return tree


def test_a_static_program_is_taken_alone(tmp_path: Path) -> None:
    root = package_root(tmp_path, {"usr/sbin/haproxy": elf("amd64"), "usr/lib/libc.so.6": elf("amd64")})
    tree = assemble(tmp_path, root)
    assert [path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()] == ["bin/haproxy"]


def test_a_library_that_no_package_has_is_named(tmp_path: Path) -> None:
    program = elf("amd64", interpreter="/lib64/ld.so", needed=("libz.so.1",))
    libraries = {f"usr/lib/x86_64-linux-gnu/{name}": elf("amd64") for name in ("ld.so", "libgcc_s.so.1")}
    wrong = {"usr/lib/libz.so.1": elf("arm64")}
    root = package_root(tmp_path, {"usr/sbin/haproxy": program, **libraries, **wrong})
    with pytest.raises(BundleError, match=r"no package has the library libz\.so\.1"):
        assemble(tmp_path, root)


def test_files_are_copied_for_links_and_left_out_by_pattern(tmp_path: Path) -> None:
    recipe = Packages(
        release="trixie",
        program="haproxy",
        files={"bin/haproxy": "usr/sbin/haproxy", "lib/data": "usr/share/data"},
        leave_out=("lib/data/test", "lib/data/*.txt"),
    )
    root = package_root(
        tmp_path,
        {
            "usr/sbin/haproxy": "/usr/bin/real",
            "usr/bin/real": elf("amd64"),
            "usr/share/data/test/a": b"",
            "usr/share/data/b.txt": b"",
            "usr/share/data/c": b"c",
            "usr/share/data/d": "../data/c",
            "usr/share/data/elsewhere": "/etc/not-in-any-package",
        },
    )
    tree = assemble(tmp_path, root, recipe)
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert files == {"bin/haproxy", "lib/data/c", "lib/data/d"}
    assert not (tree / "lib/data/d").is_symlink()


@pytest.mark.parametrize("target", ["../../../../../../etc/passwd", "haproxy"])
def test_links_out_of_packages_are_refused(tmp_path: Path, target: str) -> None:
    root = package_root(tmp_path, {"usr/sbin/haproxy": target})
    with pytest.raises(BundleError, match="link to the outside"):
        assemble(tmp_path, root)


def test_a_file_that_no_package_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="have no /usr/sbin/haproxy"):
        assemble(tmp_path, package_root(tmp_path, {"usr/x": b""}))


# The context.


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    path = tmp_path / "hang"
    path.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/pid\nwait\n")
    path.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(BundleError, match=r"did not exit within 3 s"):
        command([path], what="version", hint="", timeout=3)  # in which it has to start its child
    assert time.monotonic() - start < 40
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline, "the child of the command still runs"
        time.sleep(0.01)


def test_a_command_that_is_not_there_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no program no-such-program"):
        command(["no-such-program"], what="x", hint="", timeout=5)
    with pytest.raises(BundleError, match="status 3: wrong"):
        command(["sh", "-c", "echo wrong >&2; exit 3"], what="x", hint="", timeout=5)
    (tmp_path / "text").write_text("x")
    with pytest.raises(BundleError, match="Permission denied"):
        command([tmp_path / "text"], what="x", hint="", timeout=5)
    assert command(["sh", "-c", "echo a; echo b >&2"], what="x", hint="", timeout=5) == "a\n"
    assert command(["sh", "-c", "echo a; echo b >&2"], what="x", hint="", timeout=5, complaints_too=True) == "a\nb\n"


def test_one_run_waits_for_another(tmp_path: Path) -> None:
    first, second = Said(), Said()
    with (
        locked(tmp_path / "lock", first, deadline=5),
        pytest.raises(BundleError, match="another run"),
        locked(tmp_path / "lock", second, deadline=0.1),
    ):
        pytest.fail("two runs hold one lock")
    assert second == [f"waiting for another run, which has locked {tmp_path}/lock"], "or it looks like a hang"
    with locked(tmp_path / "lock", first, deadline=0.1):
        pass
    assert first == []


def test_the_cache_is_where_users_expect_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "kubeadm-registry/bundle"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_cache() == Path("/home/u/.cache/kubeadm-registry/bundle")
