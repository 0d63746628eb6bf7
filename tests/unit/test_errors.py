"""The tree of errors: what each says, which exit code it means, and that codes stay."""

from __future__ import annotations

import inspect
import re

import pytest

from kubeadm_registry import errors
from kubeadm_registry.errors import (
    CommandFailed,
    ConfigError,
    ConfigProblem,
    Error,
    NotYetKnown,
    PhaseFailed,
    PreflightFailed,
    Problem,
)
from kubeadm_registry.result import Result

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Error)]
#: Scripts match these: a change here breaks them.
CODES = {
    "Error": ("Failed", 1),
    "ConfigError": ("ConfigInvalid", 2),
    "PreflightFailed": ("PreflightFailed", 3),
    "ConnectionFailed": ("ConnectionFailed", 4),
    "HostBusy": ("HostBusy", 1),
    "CommandFailed": ("CommandFailed", 1),
    "CommandTimeout": ("Timeout", 1),
    "NotYetKnown": ("NotYetKnown", 1),
    "PhaseFailed": ("PhaseFailed", 1),
    "BackupError": ("BackupInvalid", 1),
    "BundleError": ("BundleInvalid", 1),
    "RegistryError": ("RegistryError", 1),
}


def test_codes_and_exit_codes_are_stable() -> None:
    assert {kind.__name__: (kind.code, kind.exit_code) for kind in KINDS} == CODES


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"^ *(\w+) {2,}.*?(?:exit (\d))?$", errors.__doc__ or "", re.MULTILINE))
    assert {*drawn, "Error"} == set(CODES)
    for name, code in drawn.items():
        if code:
            assert int(code) == CODES[name][1], name


def test_an_error_says_where() -> None:
    assert str(Error("it broke", host="cp-1")) == "cp-1: it broke"
    assert str(Error("it broke")) == "it broke"


def test_a_code_of_its_own_does_not_touch_that_of_its_kind() -> None:
    assert Error("x", code="Odd").code == "Odd"
    assert Error("x").code == "Failed"


def test_a_config_error_lists_every_problem_by_path() -> None:
    error = ConfigError("f is wrong", problems=[ConfigProblem("spec.a", "is odd"), ConfigProblem("", "no path")])
    assert str(error) == "f is wrong\n  spec.a: is odd\n  no path"


@pytest.mark.parametrize(
    ("problems", "message", "hint"),
    [
        ([Problem("B", "h", "x"), Problem("A", "h", "x"), Problem("B", "i", "x")], "3 problems", "=A,B"),
        ([Problem("A", "h", "x"), Problem("B", "h", "x", ignored=True)], "1 problem;", "=A"),
    ],
)
def test_preflight_counts_and_names_what_is_fatal(problems: list[Problem], message: str, hint: str) -> None:
    error = PreflightFailed(problems)
    assert message in error.message
    assert error.hint.endswith(f", or pass --ignore-preflight-errors{hint} to continue anyway")
    assert error.problems == tuple(problems)


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [(b"out", b"", ": out"), (b"out", b"err\n", ": err"), (b"", b"", " (no output)"), (b"", b"\xff", ": \ufffd")],
)
def test_a_failed_command_tells_its_words(stdout: bytes, stderr: bytes, said: str) -> None:
    assert CommandFailed(Result(("a",), 3, stdout, stderr)).message == f"a failed with exit status 3{said}"


def test_a_phase_wraps_its_cause_once_with_code_and_remedy() -> None:
    cause = NotYetKnown("the id is not there", hint="run the phase x first")
    error = PhaseFailed("backend/form", cause, host="cp-1", change="import the key")
    assert str(error) == "cp-1: phase backend/form, import the key: the id is not there"
    assert (error.code, error.hint, error.exit_code, error.cause) == ("NotYetKnown", cause.hint, 1, cause)
    assert PhaseFailed("vip", cause, host="cp-1").message == "phase vip: the id is not there"
