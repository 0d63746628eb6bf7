"""The user who runs this program. In a container that may be an id of which no passwd file knows a name or a home."""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def name() -> str:
    """The user's name: LOGNAME or USER, else that of the id; ``uid-1234`` where the id has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def has_name() -> bool:
    """Whether ``name`` is one that somebody gave."""
    return name() != f"uid-{os.getuid()}"


def home() -> Path:
    """The user's home directory: HOME, else that of the id; / where the id has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def expand(path: str | Path) -> Path:
    """*path* with a home directory for its ``~`` or ``~user``; as it is where there is no such user."""
    text = str(path)
    if text == "~" or text.startswith("~/"):
        return home() / text[2:]
    if not text.startswith("~"):
        return Path(text)  # expanduser takes ./~name for ~name
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
