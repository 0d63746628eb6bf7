"""Everything that this library raises on purpose.

Error
  ConfigError           the file or the command line is not valid; no host was contacted   exit 2
  PreflightFailed       checks found problems; nothing was changed                         exit 3
  ConnectionFailed      a host is unreachable, not trusted, or refuses the credentials     exit 4
  HostBusy              another run works on the host                                      exit 1
  CommandFailed         a command on a host ended with a non-zero status                   exit 1
  CommandTimeout        a command on a host, or a wait for it, passed its deadline         exit 1
  NotYetKnown           a fact that an earlier change creates; dry-run shows it as "later"
  PhaseFailed           wraps the cause once, with phase, host and change                  exit 1
  BundleError           a bundle is damaged, incomplete or was refused                     exit 1
  BackupError           a backup is damaged, locked, or of another registry                exit 1
  RegistryError         the registry violates the OCI distribution specification           exit 1

The message says what is wrong and where; ``hint`` says what to do. ``code`` is stable: scripts may match it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubeadm_registry.result import Result


class Error(Exception):
    """Base of all errors: *message* says what is wrong, *hint* what to do, *host* where (empty: nowhere special)."""

    code = "Failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", host: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.host = host
        self.code = code or type(self).code

    def __str__(self) -> str:
        return f"{self.host}: {self.message}" if self.host else self.message

    @property
    def advice(self) -> str:
        """The message, and what to do where that is known."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in a configuration: *path* to the value (``spec.nodes[0].name``) and what is wrong there."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class ConfigError(Error):
    """The file or the command line is not valid. Carries every problem found, not only the first."""

    code = "ConfigInvalid"
    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[ConfigProblem] = (), hint: str = "", code: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint, code=code)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a check found on a host: one sentence with its remedy.

    *ignored*: the user asked to go on regardless; *mandatory*: that cannot be asked of this check.
    """

    check: str
    host: str
    text: str
    ignored: bool = False
    mandatory: bool = False


class PreflightFailed(Error):
    """Checks found problems on at least one host; nothing was changed."""

    code = "PreflightFailed"
    exit_code = 3

    def __init__(self, problems: Sequence[Problem]) -> None:
        fatal = [problem for problem in problems if not problem.ignored]
        names = ",".join(sorted({problem.check for problem in fatal if not problem.mandatory}))
        regardless = f", or pass --ignore-preflight-errors={names} to continue anyway" if names else ""
        self._found = f"preflight found {len(fatal)} problem{'s' if len(fatal) != 1 else ''}"
        super().__init__(f"{self._found}; nothing was changed", hint=f"fix the problems listed above{regardless}")
        self.problems = tuple(problems)

    def under_way(self) -> Error:
        """The same as an error of a command that has changed something before."""
        return Error(self._found, hint=self.hint, code=self.code)


class ConnectionFailed(Error):
    """A host cannot be reached, its key is not trusted, or it refuses the login."""

    code = "ConnectionFailed"
    exit_code = 4


class HostBusy(Error):
    """Another run holds the lock of a host."""

    code = "HostBusy"


class CommandFailed(Error):
    """A command on a host ended with a non-zero status. ``result`` holds argv, status and all output."""

    code = "CommandFailed"

    def __init__(self, result: Result, *, host: str = "", hint: str = "") -> None:
        output = (result.stderr or result.stdout).decode(errors="replace").strip()
        super().__init__(
            f"{result.command} failed with exit status {result.code}{': ' + output if output else ' (no output)'}",
            host=host,
            hint=hint,
        )
        self.result = result


class CommandTimeout(Error):
    """A command, or a wait for a state, passed its deadline. The message says what was waited for."""

    code = "Timeout"


class NotYetKnown(Error):
    """A fact that an earlier change creates is not there yet. A dry-run shows it as "later"; a real run fails."""

    code = "NotYetKnown"


class PhaseFailed(Error):
    """A phase failed on a host: wraps the cause once, and names phase, host and change."""

    code = "PhaseFailed"

    def __init__(self, phase: str, cause: Error, *, host: str, change: str = "") -> None:
        where = f"phase {phase}" + (f", {change}" if change else "")
        super().__init__(f"{where}: {cause.message}", hint=cause.hint, host=host, code=cause.code)
        self.phase = phase
        self.change = change
        self.cause = cause


class BundleError(Error):
    """A bundle, or something that should go into one, is damaged, incomplete or refused."""

    code = "BundleInvalid"


class BackupError(Error):
    """A backup is damaged, cannot be decrypted, is not signed as required, or is of another registry."""

    code = "BackupInvalid"


def damaged(message: str, *, hint: str = "") -> BundleError:
    """The error for a bundle that is not what was written: cut short, altered, or made to do harm."""
    return BundleError(
        message,
        code="BundleDamaged",
        hint=hint or "copy the bundle again and compare its checksum, or create it again with `bundle create`",
    )


class RegistryError(Error):
    """A registry violated the OCI distribution specification, or did not answer.

    *temporary*: it may be right a moment later, as while the writer moves; begin the whole operation anew, after *wait*
    seconds if it asked for a pause. *status* is that of HTTP, 0 if there was no answer.
    """

    code = "RegistryError"

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", temporary: bool = False, wait: float = 0, status: int = 0
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.temporary = temporary
        self.wait = wait
        self.status = status
