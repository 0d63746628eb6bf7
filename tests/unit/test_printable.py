"""What others wrote is shown, and orders to the terminal in it are not obeyed."""

from __future__ import annotations

import io
import ssl
import unicodedata

import pytest
from rich.table import Table

from kubeadm_registry.engine.console import Console
from kubeadm_registry.engine.report import echo
from kubeadm_registry.engine.screen import screen
from kubeadm_registry.errors import Error
from kubeadm_registry.printable import printable, reason, shown
from tests.unit.test_report import Screen, everything

#: Another title, a colour, the end of a hyperlink, a line taken back, the direction turned, a C1 order, a tag.
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\r\x08\u202egnp.exe\u2066\x9b2J\u200b\U000e0041\u2028"
HARMLESS = r"\x1b]0;owned\x07\x1b[31mred\x0d\x08\u202egnp.exe\u2066\x9b2J\u200b\U000e0041\u2028"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable(HOSTILE) == HARMLESS


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (
            ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: expired (_ssl.c:1006)"),
            "certificate verify failed: expired",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_reason_has_no_numbers_of_python(error: Exception, told: str) -> None:
    assert reason(error) == told


def test_what_people_write_stays() -> None:
    text = "key: wert\n\t- „Größe“ 容器 🚀 [bold] \\x1b\n"
    assert printable(text) == text


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Zl", "Zp"])
def test_no_character_of_a_kind_that_is_not_seen_is_left(category: str) -> None:
    every = "".join(chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) == category)
    left = {one for one in printable(every) if unicodedata.category(one) == category}
    # Signs over digits and the like of Arabic, Syriac, Kaithi, hieroglyphs, shorthand and music, which turn nothing.
    allowed = {"\t", "\n"} | {one for one in every if unicodedata.name(one, "").startswith(
        ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN", "SHORTHAND", "MUSICAL"))}  # fmt: skip
    assert left <= allowed


@pytest.mark.parametrize("out", [io.StringIO, Screen], ids=["pipe", "terminal"])
def test_nothing_of_a_run_gives_orders(out: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = out()
    console = Console(diffs=True, out=stream)
    everything(console, f"[bold]{HOSTILE}[/bold]")
    console.close()
    written = stream.getvalue()
    for order in ("\x1b]0;", "\x1b[31mred", "\x07", "\x08", "\u202e", "\u2066", "\x9b"):
        assert order not in written, repr(order)
    assert written.count("gnp.exe") >= 12


def test_an_error_gives_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(Error(HOSTILE, hint=HOSTILE, host="cp-1"))
    assert capsys.readouterr().err == f"error [Failed] cp-1: {HARMLESS}\nhint: {HARMLESS}\n"


@pytest.mark.parametrize("markup", [True, False])
def test_a_table_gives_no_orders(markup: bool) -> None:
    stream = io.StringIO()
    table = Table(HOSTILE, box=None, pad_edge=False)
    table.add_row(HOSTILE)
    console = screen(out=stream, markup=markup)
    console.width = 400
    console.print(table)
    console.print(HOSTILE)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [HARMLESS] * 3


def test_a_line_gives_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"image    {HOSTILE}")
    assert capsys.readouterr().out == f"image    {HARMLESS}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "'a b'"),
        (7, "7"),
        (HOSTILE[:5], r"'\x1b]0;o'"),
        ("x" * 10**6, "'" + "x" * 79 + " ... (1000000 characters)"),
        ([1] * 1000, str([1] * 1000)[:80] + " ..."),
    ],
)
def test_a_value_is_quoted_short(value: object, text: str) -> None:
    assert shown(value) == text
