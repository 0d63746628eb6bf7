"""Logins for registries, as podman, skopeo, crane and docker leave them on a machine."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import Login, logins
from kubeadm_registry.registry.logins import Logins

ME = Login("me", "se:cret")


def auth(login: str = "me:se:cret") -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing else in the environment."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logins, "_NO_SESSION", tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def docker(home: Path, **content: Any) -> None:
    """The file of ``docker login``."""
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker/config.json").write_text(json.dumps(content))


def helper(home: Path, name: str, answer: str) -> None:
    """A program that keeps logins, and notes that it was asked."""
    program = home / f"docker-credential-{name}"
    program.write_text(f'#!/bin/sh\nread name\necho "$1 $name" >> {home}/asked\n{answer}\n')
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("", ".docker/config.json"),
        ("", ".config/containers/auth.json"),
        ("XDG_CONFIG_HOME", "x/containers/auth.json"),
        ("", f"run/{os.getuid()}/auth.json"),
        ("XDG_RUNTIME_DIR", "x/containers/auth.json"),
        ("DOCKER_CONFIG", "x/config.json"),
        ("REGISTRY_AUTH_FILE", "x"),
    ],
)
def test_logins_are_found_where_other_tools_keep_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, path: str
) -> None:
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text(json.dumps({"auths": {"quay.io": auth()}}))
    if variable:
        monkeypatch.setenv(variable, str(home / "x"))
    assert Logins("quay.io").of("a/b") == ME
    assert Logins("ghcr.io").of("a/b") is None


def test_without_any_file_there_is_none() -> None:
    assert Logins("quay.io").of("a/b") is None


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("http://quay.io/v1/", "quay.io"),
        ("quay.io/", "quay.io"),
        ("quay.io:8443", "quay.io:8443"),
        ("https://quay.io:8443/v2/", "quay.io:8443"),
        ("quay.io/org", "quay.io"),
        ("quay.io/org/app", "quay.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io/org", "docker.io"),
    ],
)
def test_keys_of_logins(home: Path, key: str, host: str) -> None:
    docker(home, auths={key: auth()})
    assert Logins(host).of("org/app") == ME


def test_what_docker_keeps_beside_a_login_is_none(home: Path) -> None:
    """`docker login` by a browser keeps its own tokens under longer keys; the login for others is where it was."""
    hub = "https://index.docker.io/v1/"
    beside = {f"{hub}{name}": auth(f"me:{name}") for name in ("access-token", "refresh-token")}
    for auths in ({hub: auth(), **beside}, {**beside, hub: auth()}):
        docker(home, auths=auths)
        assert Logins("docker.io").of("library/a") == ME


@pytest.mark.parametrize("key", ["quay.io/other", "quay.io/org/application", "quay.io/or", "io", "quay.io:443"])
def test_keys_of_other_logins(home: Path, key: str) -> None:
    docker(home, auths={key: auth()})
    assert Logins("quay.io").of("org/app") is None


def test_the_most_specific_login_counts(home: Path) -> None:
    docker(home, auths={"quay.io": auth("all:1"), "quay.io/org": auth("org:2"), "quay.io/org/app": auth("app:3")})
    logins = Logins("quay.io")
    assert logins.of("org/app") == Login("app", "3")
    assert logins.of("org/app/deeper") == Login("app", "3")
    assert logins.of("org/other") == Login("org", "2")
    assert logins.of("org") == Login("org", "2")
    assert logins.of("organisation") == Login("all", "1")


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"username": "me", "password": "se:cret"}, ME),
        ({"username": "me", "password": "se:cret", "auth": ""}, ME),
        ({"username": "x", "password": "y", **auth()}, ME),
        ({"auth": base64.b64encode(b"me:se:cret\0\0").decode()}, ME),
        ({"identitytoken": "t"}, Login("", "", "t")),
        ({"identitytoken": "t", **auth("me:")}, Login("me", "", "t")),
        ({"email": "me@example.com"}, None),
        ({}, None),
    ],
)
def test_what_a_login_is_written_as(home: Path, entry: dict[str, str], login: Login | None) -> None:
    docker(home, auths={"quay.io": entry})
    assert Logins("quay.io").of("a") == login


def test_programs_that_keep_logins(home: Path) -> None:
    helper(home, "safe", """echo '{"Username": "me", "Secret": "se:cret"}'""")
    docker(home, auths={"quay.io": {}, "other.io": auth("x:y")}, credHelpers={"quay.io": "safe"})
    logins = Logins("quay.io")
    assert [logins.of("a"), logins.of("b")] == [ME, ME]
    assert (home / "asked").read_text() == "get quay.io\n", "once"
    docker(home, auths={"docker.io": {}}, credsStore="safe")
    assert Logins("docker.io").of("library/a") == ME
    assert (home / "asked").read_text().splitlines()[1:] == ["get https://index.docker.io/v1/"]


def test_a_program_may_keep_an_identity_token(home: Path) -> None:
    helper(home, "safe", """echo '{"Username": "<token>", "Secret": "t"}'""")
    docker(home, credsStore="safe")
    assert Logins("quay.io").of("a") == Login("", "", "t")


@pytest.mark.parametrize("answer", ["exit 1", "echo {}", "echo", "echo '[]'", "echo not found"])
def test_a_program_that_keeps_none(home: Path, answer: str) -> None:
    helper(home, "safe", answer)
    docker(home, credsStore="safe")
    assert Logins("quay.io").of("a") is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [("exit 1", "it failed"), ("sleep 9", "it failed"), ("", "No such file or directory"),
     ("echo credentials not found in native keychain; exit 1", "")],
)  # fmt: skip
def test_a_program_that_fails_is_named_where_a_login_is_needed(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, why: str
) -> None:
    monkeypatch.setattr(logins, "_HELPER_TIMEOUT", 0.5)
    if answer:
        helper(home, "safe", answer)
    docker(home, credsStore="safe")
    found = Logins("quay.io")
    assert found.of("a") is None
    named = f"check docker-credential-safe, which {home}/.docker/config.json names: {why}"
    assert found.advice() == (named if why else "")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"auths": [5]}', '{"auths": {"quay.io": 5}}', '{"auths": {"quay.io": {"auth": "!"}}}',
             '{"auths": {"quay.io": {"auth": 5}}}', '{"auths": {"quay.io": {"auth": "YWJj"}}}',
             '{"auths": {"quay.io": {"username": "a", "password": 5}}}', '{"credHelpers": 5}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_of_logins_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (home / "auth.json").write_text(text)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "auth.json"))
    with pytest.raises(RegistryError, match=r"auth\.json") as caught:
        Logins("quay.io").of("a")
    assert caught.value.code == "LoginsUnreadable"
    assert caught.value.hint


def test_a_file_that_was_named_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "nothing"))
    with pytest.raises(RegistryError, match=r"REGISTRY_AUTH_FILE names .*nothing, which does not exist"):
        Logins("quay.io")


def test_a_password_is_not_shown() -> None:
    assert "cret" not in repr(ME)
    assert "the-token" not in repr(Login("", "", "the-token"))
