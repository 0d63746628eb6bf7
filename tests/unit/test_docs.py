"""The pages lead where they say, and README names commands and options that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from kubeadm_registry import config
from kubeadm_registry.cli.main import cli
from kubeadm_registry.kubeadm import cautions

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


def commands(text: str) -> list[list[str]]:
    """What comes after ``kubeadm-registry`` in blocks and in code of *text*, word by word."""
    text = text.replace("\\\n", " ")
    lines = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`(kubeadm-registry [^`]+)`", text)
    found = [re.search(r"(?:^|[ /])kubeadm-registry ([a-z].*)", line) for line in lines]
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


@pytest.mark.parametrize(
    "name", ["README.md", "docs/air-gap.md", "docs/images.md", "docs/recovery.md", "docs/bundle.md", "docs/backup.md"]
)
def test_every_command_and_option_is_there(root: Path, name: str) -> None:
    found = commands((root / name).read_text())
    assert len(found) > 4 or name == "docs/recovery.md"
    for words in found:
        assert unknown(words) == "", words
