"""Templates: strict, and each of them is used."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from kubeadm_registry import paths
from kubeadm_registry.engine.render import _environment, render

SLICE = f"units/{paths.SLICE}.j2"


TEMPLATES = sorted(name for name in _environment().list_templates() if name.endswith(".j2"))
#: Takes no values, or has macros alone, whose values the goldens show.
CONSTANT = (SLICE, *(name for name in TEMPLATES if name.endswith("/runbook.j2")))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in CONSTANT])
def test_a_value_that_nobody_gave_is_an_error_and_never_empty(name: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        render(name)


def test_a_template_that_is_none_is_an_error() -> None:
    with pytest.raises(jinja2.TemplateNotFound):
        render("no/such.j2")


def test_a_file_ends_with_one_newline_and_has_no_trailing_blanks() -> None:
    text = render(SLICE).decode()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_addresses_are_written_by_filters() -> None:
    template = _environment().from_string("{{ a | endpoint(1) }} {{ a | prefix }} {{ a | family }} {{ a is ipv6 }}")
    assert template.render(a="fd00::1") == "[fd00::1]:1 fd00::1/128 ip6 True"


def test_values_stand_as_they_are() -> None:
    assert _environment().from_string("{{ a }}").render(a="<&'\">") == "<&'\">"


def test_no_template_puts_a_colon_behind_an_address(root: Path) -> None:
    """An IPv6 address needs brackets there, which only the filter knows."""
    folder = root / "kubeadm_registry" / "templates"
    templates = sorted(folder.rglob("*.j2"))
    assert len(templates) > 10
    for template in templates:
        for number, line in enumerate(template.read_text().splitlines(), 1):
            assert "address }}:" not in line, f"{template}:{number}"
