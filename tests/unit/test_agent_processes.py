"""Processes: found by unit or as a family, told from later ones with their numbers, killed, seen to end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeadm_registry.agent.pressure import Pressure
from kubeadm_registry.agent.probes import Answered
from kubeadm_registry.agent.processes import Exits, Processes

UNIT = "kubeadm-registry-zot.service"


def until(test: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until *test* holds."""
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it does not become so"
        time.sleep(0.005)


def descriptors() -> int:
    """How many of a process this one has. Others come and go with what earlier tests have left to be collected."""
    return sum("pidfd" in str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A parent that waits for its two children, as HAProxy's does."""
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], start_new_session=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    until(lambda: len(children.read_text().split()) == 2)
    yield parent
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def proc(
    folder: Path, pid: int, *, cgroup: str, started: int = 1, state: str = "S", cpu: int = 0, pages: int = 0
) -> None:
    """A process in a /proc of our own; its name would mislead who splits at blanks."""
    thread = folder / str(pid) / "task" / str(pid)
    thread.mkdir(parents=True, exist_ok=True)
    (folder / str(pid) / "cgroup").write_text(cgroup)
    fields = ["0"] * 50
    fields[0], fields[1], fields[9], fields[11], fields[19] = state, "1", str(pages), str(cpu), str(started)
    for place in (folder / str(pid), thread):
        (place / "stat").write_text(f"{pid} (a ) S b) {' '.join(fields)}\n")


@pytest.mark.parametrize(
    ("cgroup", "ours"),
    [
        (f"0::/kubeadm.slice/{UNIT}\n", True),
        (f"0::/kubeadm.slice/{UNIT}/libpod-payload-1\n", True),
        (f"12:pids:/x\n1:name=systemd:/system.slice/{UNIT}\n", True),
        (f"0::/system.slice/my-{UNIT}\n", False),
        (f"0::/system.slice/{UNIT}.d\n", False),
        ("0::/\n", False),
    ],
)
def test_a_process_belongs_to_the_unit_that_its_cgroup_names(tmp_path: Path, cgroup: str, ours: bool) -> None:
    proc(tmp_path, 7, cgroup=cgroup)
    (tmp_path / "meminfo").write_text("")
    assert Processes(UNIT, proc=str(tmp_path)).find() == ((7,) if ours else ())


@pytest.mark.parametrize(
    ("cgroup", "ours"),
    [
        ("0::/kubeadm_registry.slice/kubeadm-registry-retention@run-1.service\n", True),
        ("1:name=systemd:/x.slice/kubeadm-registry-retention@a.service/sub\n", True),
        ("0::/x.slice/kubeadm-registry-retention@.service\n", True),
        ("0::/x.slice/my-kubeadm-registry-retention@a.service\n", False),
        ("0::/x.slice/kubeadm-registry-retention@a.timer\n", False),
        ("0::/kubeadm-registry-retention@a.slice/other.service\n", False),
        ("0::/x.slice/kubeadm-registry-retention.service\n", False),
    ],
)
def test_a_process_of_any_instance_belongs_to_a_template(tmp_path: Path, cgroup: str, ours: bool) -> None:
    proc(tmp_path, 7, cgroup=cgroup)
    found = Processes("kubeadm-registry-retention@.service", proc=str(tmp_path)).find()
    assert found == ((7,) if ours else ())


def test_a_process_with_the_number_of_an_earlier_one_is_another(tmp_path: Path) -> None:
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", started=10)
    processes = Processes(UNIT, proc=str(tmp_path))
    before = processes.identities()
    assert before == {(7, 10)}
    assert processes.alive(before)
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", started=11)
    assert not processes.alive(before)


def test_a_zombie_is_gone(tmp_path: Path) -> None:
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", state="Z")
    assert Processes(UNIT, proc=str(tmp_path)).find() == ()


def test_the_cpu_time_is_of_all_and_is_found_anew_when_one_was_replaced(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", cpu=ticks)
    proc(tmp_path, 8, cgroup=f"0::/{UNIT}\n", cpu=2 * ticks)
    processes = Processes(UNIT, proc=str(tmp_path))
    assert processes.cpu() == 3.0
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", started=2, cpu=5 * ticks)
    assert processes.cpu() == 7.0


def test_the_pages_that_were_waited_for_are_those_of_all(tmp_path: Path) -> None:
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", pages=2)
    proc(tmp_path, 8, cgroup=f"0::/{UNIT}\n", pages=3)
    processes = Processes(UNIT, proc=str(tmp_path))
    assert processes.pages_read() == 0, "none is known yet"
    processes.find()
    assert processes.pages_read() == 5


def test_a_silent_process_is_idle_unless_it_works_or_waits_for_its_memory(tmp_path: Path) -> None:
    cgroup = f"0::/{UNIT}\n"
    proc(tmp_path, 7, cgroup=cgroup, pages=2)
    answered = Answered(Processes(UNIT, proc=str(tmp_path)), Pressure(str(tmp_path / "none")))
    answered.watch(1.0)
    assert (answered.answers.idle, answered.answers.paged) == (1.0, None)
    answered.watch(2.0)
    assert (answered.answers.idle, answered.answers.paged) == (1.0, None)
    proc(tmp_path, 7, cgroup=cgroup, pages=3)
    answered.watch(3.0)
    assert (answered.answers.idle, answered.answers.paged) == (3.0, 3.0)
    proc(tmp_path, 7, cgroup=cgroup, pages=3, cpu=1)
    answered.watch(4.0)
    assert (answered.answers.idle, answered.answers.paged) == (4.0, 3.0)


@pytest.mark.parametrize(("diskless", "paged"), [(True, 2.0), (False, None)])
def test_what_has_no_disk_and_waits_for_one_waits_for_its_memory(
    tmp_path: Path, diskless: bool, paged: float | None
) -> None:
    """A major fault counts once the page is there: until then HAProxy looked hung, and both were killed at once."""
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n")
    answered = Answered(Processes(UNIT, proc=str(tmp_path)), Pressure(str(tmp_path / "none")), diskless=diskless)
    answered.watch(1.0)
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n", state="D")
    answered.watch(2.0)
    assert (answered.answers.idle, answered.answers.paged) == (paged or 1.0, paged)


def lost(path: Path, some: float) -> Path:
    """What the kernel has counted: seconds in which somebody waited for memory, and all did."""
    lines = [f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={int(some * 1e6)}\n" for kind in ("some", "full")]
    path.write_text("".join(lines))
    return path


def test_memory_is_short_where_a_fifth_of_the_time_is_lost_to_it(tmp_path: Path) -> None:
    path = lost(tmp_path / "memory", 100.0)
    pressure = Pressure(str(path))
    assert not pressure.short(1.0), "nothing to compare with"
    lost(path, 100.03)
    assert pressure.short(1.1)
    assert pressure.short(1.11), "too soon for another look"
    assert not pressure.short(1.2)
    lost(path, 101.0)
    assert not pressure.short(9.0), "a tenth of the time"
    lost(path, 104.0)
    assert pressure.short(12.0), "also after the agent did not run for seconds"
    path.write_text("unknown")
    assert not pressure.short(12.1)
    path.unlink()
    assert not pressure.short(12.2)


def test_what_is_silent_where_memory_is_short_waits_for_it(tmp_path: Path) -> None:
    proc(tmp_path, 7, cgroup=f"0::/{UNIT}\n")
    path = lost(tmp_path / "memory", 1.0)
    answered = Answered(Processes(UNIT, proc=str(tmp_path)), Pressure(str(path)))
    answered.watch(1.0)
    lost(path, 1.05)
    answered.watch(1.1)
    assert (answered.answers.idle, answered.answers.paged) == (1.1, 1.1)
    answered.watch(1.2)
    assert (answered.answers.idle, answered.answers.paged) == (1.1, 1.1)


def test_a_family_is_the_parent_and_its_children_also_later_ones(family: subprocess.Popen[bytes]) -> None:
    """HAProxy's master opens the runtime socket, and its workers, new at each reload, do the work."""
    processes = Processes(pid=family.pid)
    found = processes.find()
    assert family.pid in found
    assert len(found) == 3
    assert processes.cpu() is not None
    one = next(pid for pid in found if pid != family.pid)
    os.kill(one, signal.SIGKILL)
    until(lambda: len(processes.find()) == 2)
    assert set(processes.kill()) == set(found) - {one}
    assert family.wait(20) == -signal.SIGKILL
    assert processes.find() == (), "nothing of a parent that has gone"


def test_nobody_is_followed_before_a_process_is_known() -> None:
    processes = Processes()
    assert processes.find() == ()
    assert processes.kill() == ()
    assert processes.cpu() is None
    processes.follow(2**22 + 1)
    assert processes.find() == ()


def test_a_stopped_process_is_killed_and_known_to_be_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        processes = Processes(pid=child.pid)
        before = processes.identities()
        os.kill(child.pid, signal.SIGSTOP)
        assert processes.alive(before)
        assert processes.kill() == (child.pid,)
        until(lambda: not processes.alive(before))
    finally:
        child.kill()
        child.wait()


def test_a_kernel_without_pidfd_kills_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pidfd(_: int, __: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert Processes(pid=child.pid).kill() == (child.pid,)
        assert child.wait(20) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_an_exit_is_told_once_and_leaves_no_descriptor() -> None:
    child = subprocess.Popen(["sleep", "60"])
    told = []

    async def course() -> None:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        exits = Exits(loop, Processes(pid=child.pid), lambda: (told.append(1), gone.set()))  # type: ignore[func-returns-value]
        before = descriptors()
        exits.look()
        exits.look()
        assert descriptors() == before + 1
        child.kill()
        await asyncio.wait_for(gone.wait(), 20)
        await asyncio.sleep(0)
        assert descriptors() == before
        exits.close()

    try:
        asyncio.run(course())
    finally:
        child.kill()
        child.wait()
    assert told == [1]
