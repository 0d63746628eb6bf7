"""The nft rules that guard frontend and storage on loopback: looked at all the time, loaded again when they are lost.

Any ``nft flush ruleset`` takes them away, as a firewall's restart or an administrator does it, and no unit hears of
that. The kernel's number for the ruleset's generation grows with each change, so a look costs one short question; only
when the number has changed the rules of our own tables are counted.
"""

from __future__ import annotations

import asyncio
from typing import Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Guard as Settings
from kubeadm_registry.agent.log import described
from kubeadm_registry.agent.netlink import Ruleset

INTERVAL = 0.1  # seconds from one look to the next
AGAIN = 1.0  # seconds after an attempt that failed
PATIENCE = 5.0  # seconds for nft

Tell = Callable[[str, str], None]  # a kind and a sentence


class Guard:
    """The rules of our tables; none is looked at without *settings*. *log* hears of losses, *failed* what went wrong.

    ``whole`` says whether the rules are there; None until they were loaded once, when it is known how many there are.
    """

    def __init__(self, settings: Optional[Settings], changed: Callable[[], None], log: Tell, failed: Tell) -> None:
        self.whole: Optional[bool] = None
        self.losses = 0
        self._settings = settings
        self._changed = changed
        self._log = log
        self._failed = failed
        self._ruleset = Ruleset()
        self._rules: tuple[int, ...] = ()  # of each table, as many as there were when they had been loaded
        self._generation = -1  # when they were last counted
        self._next = 0.0
        self._task: Optional[asyncio.Task[None]] = None

    def tick(self, now: float) -> None:
        """Look, if it is time; have the rules loaded if some are missing."""
        if self._settings is None or now < self._next or (self._task is not None and not self._task.done()):
            return
        self._next = now + INTERVAL
        try:
            lost = self._lost()
        except OSError as error:
            self._failed("guard", f"cannot ask the kernel for the nft rules: {error}")
            self._next = now + AGAIN
            return
        if not lost:
            return
        if self.whole:
            self.losses += 1
            tables = ", ".join(self._settings.tables)
            self._log("guard", f"the nft rules of {tables} were changed or lost, and are loaded again")
            self._set(False)
        self._task = asyncio.get_running_loop().create_task(self._load(self._settings))

    def _lost(self) -> bool:
        """Whether the tables are not as they were when they had been loaded, or not loaded yet. Raises OSError."""
        generation = self._ruleset.generation()
        if self.whole and generation == self._generation:
            return False
        self._generation = generation  # as it was before they are counted: a change meanwhile is seen next time
        return not self.whole or self._count() != self._rules

    def _count(self) -> tuple[int, ...]:
        return tuple(self._ruleset.rules(table) for table in self._settings.tables) if self._settings else ()

    async def _load(self, settings: Settings) -> None:
        """Load the file, which replaces all rules in one transaction."""
        try:
            complaint = await _nft("-f", settings.file)
            self._generation = self._ruleset.generation()
            self._rules = self._count()
        except (OSError, asyncio.TimeoutError) as error:
            complaint = described(error)
        if not complaint and not all(self._rules):
            complaint = f"there are no rules in {', '.join(settings.tables)} afterwards"
        if complaint:
            self._failed("guard", f"cannot load {settings.file}: {complaint}")
            self._next = clock() + AGAIN
        self._set(not complaint)

    def _set(self, whole: bool) -> None:
        if whole is not self.whole:
            self.whole = whole
            self._changed()

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
        self._ruleset.close()


async def _nft(*arguments: str) -> str:
    """Run nft; the first line of what it says if it fails, else nothing. Raises OSError, asyncio.TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        "nft", *arguments, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode == 0:
        return ""
    return next(iter(said.decode(errors="replace").splitlines()), f"nft ended with status {process.returncode}")
