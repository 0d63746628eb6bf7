"""What makes the program start sooner: parts of libraries that they import for others, and that are not used here."""

from __future__ import annotations

import gc
import os
import sys
from types import ModuleType
from typing import cast

#: The command of httpx, with all that draws its colours, and what paramiko runs the "Match exec" of its own reader of
#: ssh_config with; we ask ssh for that. Both libraries do without: to them these look as if they were not installed.
_UNUSED = ("httpx._main", "invoke")
#: New objects after which Python looks for garbage that refers to itself. With its own 700 a sixth of the start goes to
#: looking through what is imported, and stays.
_GARBAGE = 50_000


def lean() -> None:
    """Keep such modules out of this process, which must be the program's own. To be called before they are imported."""
    gc.set_threshold(_GARBAGE, *gc.get_threshold()[1:])
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    for name in _UNUSED:
        modules.setdefault(name, None)  # so that "import" fails: the manual of sys.modules
    # To look for plugins in all that is installed takes a twentieth of the start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
