"""The lab for people: python -m tests.lab up, and so on."""

from __future__ import annotations

import argparse
import os
import sys

from tests.lab.command import LabError, locked, unwinding
from tests.lab.lab import Lab, sweep
from tests.lab.lanes import places
from tests.lab.settings import BESIDE, Settings

DESCRIPTION = """\
Real hosts with systemd and sshd on this machine, on one switch, cut off from the world.

  python -m tests.lab up                    h1, h2, h3 (servers; h3 without Python) and h4 (client)
  python -m tests.lab ssh h1                over sshd, as the lab's user
  python -m tests.lab in curl -sk https://10.88.0.100:5000/v2/
  python -m tests.lab power-cut h1          and power-on h1
  python -m tests.lab down
"""
EPILOG = """\
environment:
  KUBEADM_REGISTRY_LAB  the lab's directory (default /var/tmp/kubeadm-registry-lab); another name, another lab.
                        In it: ssh_config, known_hosts, id_ed25519 (the log-in key), consoles/.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")

    def on_host(name: str, summary: str) -> argparse.ArgumentParser:
        it = command(name, summary)
        it.add_argument("host", metavar="HOST")
        return it

    up = command("up", "start a lab")
    default = Settings()
    up.add_argument("--hosts", type=int, default=default.hosts, help="how many (default: %(default)s)")
    up.add_argument("--without-python", default="h3", metavar="HOST,...", help="hosts without Python (default: h3)")
    up.add_argument("--suite", default=default.suite, help="Debian release of the hosts (default: %(default)s)")
    up.add_argument("--user", default=default.user, help="who logs in, with sudo unless root (default: %(default)s)")
    up.add_argument("--ssh-port", type=int, default=default.ssh_port, help="sshd's port (default: %(default)s)")
    up.add_argument("--interface", default=default.interface, help="name of the interface (default: %(default)s)")
    up.add_argument("--family", choices=("4", "6", "dual"), default=default.family, help="IP (default: %(default)s)")
    up.add_argument("--subnet", default=default.subnet, help="IPv4 network (default: %(default)s)")
    up.add_argument("--subnet6", default=default.subnet6, help="IPv6 network (default: %(default)s)")
    up.add_argument("--gateway", action="store_true", help="give the hosts a default route, which leads nowhere")
    up.add_argument("--disk", default=default.disk, help="size of each host's disk (default: %(default)s)")

    command("down", "end the lab, or what a killed run of the tests left behind")
    command("list", "hosts with their addresses and state")
    for name, summary in (
        ("ssh", "run a command over sshd as the lab's user, or log in"),
        ("sh", "run a command as root without sshd, also while the host is cut off or paused; or a shell"),
    ):
        on_host(name, summary).add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    inside = command("in", "run a command of this machine in the lab's network; or a shell")
    inside.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")

    on_host("power-cut", "take the power away: unsynced data is lost, peers hear nothing")
    on_host("power-on", "boot from the same disk")
    on_host("reboot", "reboot in good order")
    on_host("reinstall", "replace the host by a new one of the same name: an empty disk, new host keys")
    cut = on_host("net-cut", "pull the cable out")
    cut.add_argument("--silent", action="store_true", help="let the switch's port die instead: the carrier stays")
    on_host("net-heal", "put the cable in, let the port work")
    link = command("cut-link", "lose everything between two hosts")
    link.add_argument("source", metavar="FROM")
    link.add_argument("target", metavar="TO")
    link.add_argument("--one-way", action="store_true", help="lose only what goes FROM -> TO")
    command("heal-links", "lose nothing between hosts any more")
    on_host("pause", "stop all processes, as on a hanging host; its kernel still answers")
    on_host("resume", "let a paused host go on")
    command("restore", "undo all faults")
    command("check", "check that the lab does what it says; starts and ends one of its own")
    return top


def main(argv: list[str]) -> int:
    """Do what *argv* says; the status to end with."""
    options = parser().parse_args(argv)
    try:
        with unwinding():
            return work(options)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("lab: interrupted\n")
        return 130


def work(options: argparse.Namespace) -> int:
    """Do one command."""
    if options.command == "up":
        Lab.up(settings(options))
        return 0
    if options.command == "down":
        down()
        return 0
    if options.command == "check":
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "tests/lab/test_lab.py"])  # noqa: S606
    lab = Lab.open()
    if options.command == "list":
        for host in lab.hosts.values():
            addresses = " ".join(dict.fromkeys(filter(None, (host.address, host.address6))))
            python = "" if host.python else "  (no python3)"
            sys.stdout.write(f"{host.name}  {host.state:6}  {addresses}{python}\n")
    elif options.command == "in":
        replace_by(lab.argv(*(options.words or ["bash"])))
    elif options.command == "cut-link":
        lab.cut_link(known(lab, options.source), known(lab, options.target), one_way=options.one_way)
    elif options.command == "heal-links":
        lab.heal_links()
    elif options.command == "restore":
        lab.restore()
    else:
        on_host(lab, options)
    return 0


def down() -> None:
    """End the lab and those of tests beside it, whole or broken. Raises LabError with what stays."""
    failed = []
    for place in (place for lane in places().values() for place in (lane, *map(lane.beside, BESIDE))):
        try:
            with locked(place.lock, wait=False):
                sweep(place)
        except LabError as error:
            failed.append(str(error))
    if failed:
        raise LabError("; ".join(failed))


def on_host(lab: Lab, options: argparse.Namespace) -> None:
    """Do a command that is about one host."""
    host = lab.hosts[known(lab, options.host)]
    match options.command:
        case "ssh":
            replace_by([*host.ssh_argv(), *options.words])  # joined and read by the host's shell, as ssh does
        case "sh":
            replace_by(host.sh_argv(*options.words))
        case "net-cut":
            host.cut(silent=options.silent)
        case "net-heal":
            host.heal()
        case name:
            getattr(host, name.replace("-", "_"))()


def known(lab: Lab, name: str) -> str:
    """*name*, if a host is called so."""
    if name not in lab.hosts:
        raise LabError(f"no host {name!r}; there are {', '.join(lab.hosts)}")
    return name


def settings(options: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    names = ("hosts", "suite", "user", "ssh_port", "interface", "family", "subnet", "subnet6", "gateway", "disk")
    values = {name: getattr(options, name) for name in names}
    return Settings(**values, without_python=tuple(filter(None, options.without_python.split(","))))


def replace_by(argv: list[str]) -> None:
    """Become the command *argv*, so that its terminal, signals and status are this process's."""
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
