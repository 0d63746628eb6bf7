"""The pages lead where they say, and name commands and options that are there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from kubeadm_registry import config
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import garage
from kubeadm_registry.config.kubeadm import cautions
from kubeadm_registry.engine.changes import unit_path
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images.kubernetes_images import images_of
from tests.unit.fake_cluster import FakeCluster

COMMAND = re.compile(r"(?:^|[ /])kubeadm-registry ([a-z].*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md"))]


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading(root: Path) -> None:
    broken = []
    for page in pages(root):
        for link in LINK.findall(page.read_text()):
            if link.startswith(("http://", "https://")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(root)}: {link}")
    assert broken == []


def test_the_cluster_file_of_the_quick_start_is_valid(root: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    spec = config.parse(example, "README.md").spec
    [caution] = cautions(spec)
    assert caution.startswith("controlPlaneEndpoint is 10.0.0.11:6443"), "the page says that it warns of this alone"
    whole = re.sub(r"# (controlPlaneEndpoint: \S+) .*", r"\1", example)
    assert cautions(config.parse(whole, "README.md").spec) == []


def test_each_decision_has_its_number(root: Path) -> None:
    numbers = []
    for page in sorted(root.glob("docs/decisions/*.md")):
        number = int(page.name.partition("-")[0])
        assert page.read_text().startswith(f"# {number}. "), page.name
        numbers.append(number)
    assert len(set(numbers)) == len(numbers)


def commands(text: str) -> list[list[str]]:
    """What comes after ``kubeadm-registry`` in blocks and in code of *text*, word by word."""
    return [*printed(text), *_words(re.findall(r"`(kubeadm-registry [^`]+)`", text))]


def printed(text: str) -> list[list[str]]:
    """The same of blocks alone, where a line is whole."""
    text = text.replace("\\\n", " ")
    lines = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return _words(lines + re.findall(r"^ {4}(.+)", text, re.MULTILINE))


def _words(lines: list[str]) -> list[list[str]]:
    # A key's comment may be the program's name, and this is no command.
    found = [COMMAND.search(line) for line in lines if "ssh-ed25519" not in line]
    return [shlex.split(re.sub(r"[|;>&].*| # .*", "", match[1])) for match in found if match]


def unknown(words: list[str]) -> str:
    """What the program does not have of the command line *words*."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if isinstance(command, click.Group) and not command.invoke_without_command and (rest or len(words) > 1):
        return " ".join(rest[:1]) or "a subcommand is missing"
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return " ".join(sorted({word.partition("=")[0] for word in rest if word.startswith("-")} - options))


def test_every_command_and_option_is_there(root: Path) -> None:
    # The changelog tells of earlier releases, whose commands may be gone.
    found = {page: commands(page.read_text()) for page in pages(root) if page.name != "CHANGELOG.md"}
    assert len(found[root / "README.md"]) > 20
    wrong = {
        f"{page.relative_to(root)}: {shlex.join(words)}": missing
        for page, lines in found.items()
        for words in lines
        if (missing := unknown(words))
    }
    assert wrong == {}


def refusal(words: list[str]) -> str:
    """Why the program does not take the command line *words*, as without an argument that it requires."""
    command: click.Command = cli
    rest = [word for word in words if word != "..."]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    try:
        command.make_context("kubeadm-registry", rest, **cli.context_settings)
    except click.exceptions.Exit:  # --help
        return ""
    except click.UsageError as error:
        return error.format_message()
    return ""


def test_every_command_in_a_block_can_be_run_as_it_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "admin.conf")
    wrong = {
        f"{page.relative_to(root)}: {shlex.join(words)}": why
        for page in pages(root)
        if page.name not in ("CHANGELOG.md", "reference.md")  # earlier releases; how the arguments are written
        for words in printed(page.read_text())
        if (why := refusal(words))
    }
    assert wrong == {}


def test_damaged_blocks_are_looked_for_where_blocks_are_repaired(root: Path) -> None:
    """Garage's `repair blocks` finds missing ones only; its scrub is what reads them (garage/src/block/repair.rs)."""
    texts = [page.read_text() for page in pages(root)]
    shown = [re.findall(r"[$]G .* repair --yes (scrub start|blocks)", text) for text in texts]
    assert [found for found in shown if found] == [["scrub start", "blocks"]] * 2


GARAGE = re.compile(r"\bG=\$\(.*\)")


def test_the_garage_that_runs_is_found_beside_earlier_ones(root: Path, installed: FakeCluster, tmp_path: Path) -> None:
    """As the pages find it by hand; /opt keeps the programs of earlier releases."""
    [line] = {found for page in pages(root) for found in GARAGE.findall(page.read_text())}
    server = installed.servers["cp-1"]
    (tmp_path / "unit").write_bytes(server.content(unit_path(garage.SERVICE.unit)))
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\n[ "$*" = "cat kubeadm-registry-garage" ] && cat {tmp_path}/unit\n')
    (tmp_path / "systemctl").chmod(0o755)
    told = subprocess.run(["sh", "-c", f'{line}; echo "$G"'], env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert told.stdout.split() == [installed.cluster.program("garage").executable]


def refused(version: str) -> str:
    """Why the program knows no images of Kubernetes *version*."""
    try:
        images_of(version)
    except ConfigError as error:
        return error.message
    return ""


def test_every_release_of_kubernetes_that_is_asked_for_is_known(root: Path) -> None:
    asked = {
        (page.name, words[words.index("--kubernetes-version") + 1])
        for page in pages(root)
        for words in commands(page.read_text())
        if "--kubernetes-version" in words
    }
    assert len(asked) > 3
    assert {one: why for one in asked if (why := refused(one[1]))} == {}
