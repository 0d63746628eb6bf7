"""Rooms in which something is broken, as values: how it is broken and mended, and what ``doctor`` says of it.

The table in docs/doctor.md is made of these; a unit test compares the two.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from kubeadm_registry import config, paths, pki, secrets
from kubeadm_registry.components import haproxy
from tests.lab.host import Host
from tests.lab.registry import Registry

DATA = "/var/lib/kubeadm-registry"
Act = Callable[[Registry, Host], None]


def nothing(_: Registry, __: Host) -> None:
    """The commands that doctor names mend it."""


@dataclass(frozen=True, slots=True)
class Room:
    """*broken* is what happened, on the node ``h2`` unless *on* says another.

    *code*, *says* and *fix* are what doctor is to say: the stable code, words of the message and of the command. Codes
    of errors in *also* may be there too. Without *mend* the very commands that doctor names are run.
    """

    broken: str
    strike: Act
    code: str
    fix: str
    says: str = ""
    """Words of the message."""
    mend: Act | None = None
    on: str = "h2"
    severity: str = "error"
    also: tuple[str, ...] = ()
    down: bool = False
    """Whether the registry does not serve meanwhile."""

    def __str__(self) -> str:
        return self.broken


def sh(script: str) -> Act:
    """Run a script as root; ``UNIT_x`` stands for the unit of the service x."""

    def act(registry: Registry, host: Host) -> None:
        text = script
        for name in ("agent", "keepalived", "garage", "frontend", "guard"):
            text = text.replace(f"UNIT_{name}", registry.unit(name))
        host.sh("sh", "-c", text.replace("FRONTEND", registry.frontend), timeout=120)

    return act


def on_client(script: str) -> Act:
    """Run a script as root on the host that is no node."""

    def act(registry: Registry, _: Host) -> None:
        registry.client.sh("sh", "-c", script.replace("VIP", registry.vip))

    return act


def cut(*names: str) -> Act:
    """The ports of the switch die."""

    def act(registry: Registry, _: Host) -> None:
        for name in names:
            registry.lab.hosts[name].cut(silent=True)

    return act


def healed(registry: Registry, _: Host) -> None:
    """All cables and links are well again."""
    registry.lab.restore()


def with_certificate(*, foreign: bool) -> Act:
    """The node has another certificate: of another CA, or an expired one."""

    def act(registry: Registry, host: Host) -> None:
        found = json.loads(host.sh("cat", secrets.PATH).stdout)
        own = pki.Pair(found["ca_certificate"], found["ca_key"])
        names = [host.name, host.address, registry.vip]
        lifetime = pki.LEAF_LIFETIME if foreign else -timedelta(hours=1)
        pair = pki.issue(pki.make_ca("another") if foreign else own, host.name, names, lifetime=lifetime)
        host.sh("cp", "-a", paths.NODE_PEM, f"{paths.NODE_PEM}.saved")
        host.sh("sh", "-c", 'cat > "$1"', "-", paths.NODE_PEM, stdin=pair.certificate + pair.key)
        reload(registry, host)

    return act


def reload(_: Registry, host: Host) -> None:
    """The proxies load what is on disk."""
    host.sh("systemctl", "reload", *paths.HAPROXY_UNITS)


def old_certificate(registry: Registry, host: Host) -> None:
    """The node has its own certificate again."""
    host.sh("mv", f"{paths.NODE_PEM}.saved", paths.NODE_PEM)
    reload(registry, host)


def no_canary(registry: Registry, host: Host) -> None:
    """Somebody's tool deletes the canary image."""
    from tests.lab.web import CANARY, ask

    assert ask(registry, "DELETE", CANARY, login=registry.login(), address=host.address).status == 202


def hung_run(_: Registry, host: Host) -> None:
    """A run that began two hours ago holds the lock."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
    # systemd makes one dollar sign of two.
    script = f'exec 9>>"$1"; flock 9; echo "root@workstation pid 7, since {since}, process $$$$" > "$1.who"; sleep 900'
    host.sh("systemd-run", "--quiet", "--unit=hung-run", "sh", "-c", script, "-", paths.LOCK)


#: Advertises the virtual router ``$1`` to all, as a keepalived with other settings does.
_ADVERTISE = """
import socket, struct, sys, time
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
wire.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
wire.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[2]))
while True:
    wire.sendto(struct.pack("!BBBBBB", 0x21, int(sys.argv[1]), 100, 1, 0, 1) + bytes(14), ("224.0.0.18", 0))
    time.sleep(0.4)
"""


def other_router(registry: Registry, _: Host) -> None:
    """A keepalived elsewhere uses our virtual router id."""
    router = str(config.load(registry.file).spec.vip.router_id)
    registry.client.sh("systemd-run", "--quiet", "--unit=other-router", "python3", "-c", _ADVERTISE, router,
                       registry.client.address)  # fmt: skip


def nft(rule: str, hook: str = "input") -> str:
    """A script that adds a table of somebody else's with one *rule*."""
    chain = f"type filter hook {hook} priority -20; policy accept;"
    text = f"table inet site {{\n chain {hook} {{\n {chain}\n {rule}\n }}\n}}"
    return f"nft -f - <<'END'\n{text}\nEND"


def no_vrrp(registry: Registry, _: Host) -> None:
    """The firewalls of the VIP's holder and of another node drop VRRP, so that one takes it as well for a moment."""
    holder = registry.holder()
    for host in (holder, registry.others(holder)[0]):
        host.sh("sh", "-c", nft("meta l4proto 112 drop"))


def reinstalled(_: Registry, host: Host) -> None:
    """A new host with the same name and address."""
    host.reinstall()


_ASIDE = f"systemctl stop UNIT_garage UNIT_agent; mv {DATA} {DATA}.saved; mkdir {DATA}; "
_BACK = (
    f"systemctl stop UNIT_garage UNIT_agent; umount {DATA} 2>/dev/null; rm -rf {DATA}; mv {DATA}.saved {DATA}; "
    "sed -i '/kubeadm-registry/d' /etc/fstab; systemctl start UNIT_garage UNIT_agent"
)
_DROP_IN = f"{paths.UNITS}/{{}}.d"
ROOMS = (
    Room("the agent is stopped", sh("systemctl stop UNIT_agent"), "ServiceStopped", "systemctl start",
         says="kubeadm-registry-agent.service is stopped"),
    Room("the agent is masked", sh("mv /etc/systemd/system/UNIT_agent /root/saved; "
            "systemctl mask --quiet --now UNIT_agent"), "ServiceMasked",
         "systemctl unmask",
         mend=sh("systemctl unmask --quiet UNIT_agent; mv /root/saved /etc/systemd/system/UNIT_agent; "
                 "systemctl daemon-reload; systemctl start UNIT_agent"),
         says="kubeadm-registry-agent.service is masked"),
    Room("keepalived is stopped", sh("systemctl stop UNIT_keepalived"), "ServiceStopped", "systemctl start",
         says="kubeadm-registry-keepalived.service is stopped"),
    Room("one of the two HAProxy processes is stopped", sh("systemctl stop kubeadm-registry-haproxy@2"),
         "ServiceStopped", "systemctl start kubeadm-registry-haproxy@2",
         says="kubeadm-registry-haproxy@2.service is stopped"),
    Room("the registry service is stopped", sh("systemctl stop UNIT_frontend"), "ServiceStopped", "systemctl start",
         says=".service is stopped"),
    Room("Garage is stopped", sh("systemctl stop UNIT_garage"), "ServiceStopped", "systemctl start",
         says="kubeadm-registry-garage.service is stopped"),
    Room("a unit is disabled", sh("systemctl disable --quiet UNIT_agent"), "ServiceDisabled", "systemctl enable",
         severity="warning",
         says="kubeadm-registry-agent.service does not start at boot"),
    Room("HAProxy's configuration is damaged",
         sh(f"echo nonsense >> {haproxy.CONFIG}; systemctl restart kubeadm-registry-haproxy@1 || :"),
         "ConfigDamaged", "kubeadm-registry init",
         says="haproxy.cfg was changed, and kubeadm-registry-haproxy@1.service does not start with it"),
    Room("a drop-in file replaces the registry's program",
         sh("d=/etc/systemd/system/UNIT_frontend.d; mkdir $d; "
            "printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' > $d/site.conf; "
            "systemctl daemon-reload; systemctl restart UNIT_frontend || :"),
         "UnitBroken", "rm /etc/systemd/system",
         says=".service.d/site.conf changes it"),
    Room("a drop-in file changes a unit",
         sh("d=/etc/systemd/system/UNIT_garage.d; mkdir $d; printf '[Service]\\nNice=5\\n' > $d/site.conf; "
            "systemctl daemon-reload"),
         "UnitOverridden", "rm /etc/systemd/system", severity="warning",
         says="kubeadm-registry-garage.service is changed by"),
    Room("a unit file is edited", sh("sed -i s/RestartSec=.*/RestartSec=9s/ /etc/systemd/system/UNIT_garage"),
         "UnitChanged", "kubeadm-registry init", severity="warning",
         mend=sh("sed -i s/RestartSec=.*/RestartSec=500ms/ /etc/systemd/system/UNIT_garage"),
         says="kubeadm-registry-garage.service differs from what init writes"),
    Room("a program is deleted, and its service restarted",
         sh("p=$(echo /opt/kubeadm-registry/programs/FRONTEND/*); mv $p /opt/saved; "
            "systemctl restart UNIT_frontend || :"),
         "ProgramsMissing", "kubeadm-registry init --bundle",
         mend=sh("p=$(sed -n 's,^ExecStart=\\(/opt/kubeadm-registry/programs/FRONTEND/[^/]*\\)/.*,\\1,p' "
                 "/etc/systemd/system/UNIT_frontend); mv /opt/saved $p; systemctl restart UNIT_frontend"),
         says="missing, or not able to start: "),
    Room("/etc/kubeadm-registry is removed", sh(f"mv {paths.ETC} /etc/saved"), "ConfigurationRemoved",
         "kubeadm-registry init", mend=sh(f"mv /etc/saved {paths.ETC}"),
         says="/etc/kubeadm-registry is gone"),
    Room("secrets.json is missing", sh(f"mv {secrets.PATH} /root/saved"), "SecretsMissing", "kubeadm-registry init",
         mend=sh(f"mv /root/saved {secrets.PATH}"),
         says="secrets.json is missing"),
    Room("secrets.json can be read by everyone", sh(f"chmod 644 {secrets.PATH}"), "SecretsExposed", "chmod 600",
         says="secrets.json is accessible to users other than root"),
    Room("the node has a certificate of another CA", with_certificate(foreign=True), "CertificateWrong",
         "kubeadm-registry init", mend=old_certificate,
         says="it presents a certificate of another CA"),
    Room("the node's certificate has expired", with_certificate(foreign=False), "CertificateExpired",
         "kubeadm-registry init", mend=old_certificate,
         says="its certificate expired on"),
    Room("a hosts.toml file of containerd is removed", sh("rm -r /etc/containerd/certs.d/registry.k8s.io"),
         "MirrorsChanged", "kubeadm-registry init phase containerd",
         says="containerd's configuration for the registry is missing or was edited"),
    Room("config_path is taken out of containerd's configuration",
         sh("cp -a /etc/containerd /etc/saved; "
            "sed -i '/config_path/d' $(grep -rl config_path /etc/containerd --include=*.toml)"),
         "MirrorsChanged", "kubeadm-registry init phase containerd",
         mend=sh("rm -r /etc/containerd; mv /etc/saved /etc/containerd"),
         says="containerd's configuration for the registry is missing or was edited"),
    Room("containerd is stopped", sh("systemctl stop containerd"), "ContainerdStopped", "systemctl start containerd",
         says="containerd.service is stopped"),
    Room("the data disk is not mounted",
         sh(f"{_ASIDE}echo '{DATA}.saved {DATA} none bind 0 0' >> /etc/fstab; systemctl daemon-reload; "
            "systemctl start --no-block UNIT_garage UNIT_agent"),
         "DataNotMounted", "mount /var/lib/kubeadm-registry", mend=sh(_BACK),
         says="/var/lib/kubeadm-registry is not mounted, so /var/lib/kubeadm-registry is empty"),
    Room("the data directory is empty, and nothing says what is mounted there",
         sh(f"{_ASIDE}systemctl start --no-block UNIT_garage UNIT_agent"), "DataMissing", "kubeadm-registry init",
         mend=sh(_BACK),
         says="does not contain the storage that this node had"),
    Room("the data directory is read-only", sh(f"mount --bind {DATA} {DATA}; mount -o remount,ro,bind {DATA}"),
         "DataReadOnly", "mount -o remount,rw", mend=sh(f"umount {DATA}; systemctl restart UNIT_garage UNIT_agent"),
         says="is on a file system that is mounted read-only"),
    Room("the data disk is nearly full",
         sh(f"fallocate -l $(($(df --output=avail -B1 {DATA} | tail -n 1) - 1500000000)) {DATA}/filler"),
         "DiskFull", "kubeadm-registry images delete", mend=sh(f"rm {DATA}/filler"),
         says="of the data disk is free, so pushes are refused"),
    Room("the data disk is full",
         sh(f"fallocate -l $(df --output=avail -B1 {DATA} | tail -n 1) {DATA}/filler; "
            f"dd if=/dev/zero of={DATA}/filler2 bs=64k 2>/dev/null || :"),
         "DiskFull", "kubeadm-registry images delete", mend=sh(f"rm {DATA}/filler*"),
         says="of the data disk is free, so pushes are refused"),
    Room("the data disk has no inodes left",
         sh(f"mkdir {DATA}/filler; cd {DATA}/filler; "
            "seq $(df --output=iavail . | tail -n 1) | split -l 1 -a 6 - x || :"),
         "InodesExhausted", "du --inodes", mend=sh(f"rm -r {DATA}/filler"),
         says="inodes are free on the data disk"),
    Room("pushes were closed by a collection that died",
         sh(f"printf 'closed %s\\nfull 0\\n' $(($(date +%s) + 600)) > {haproxy.PUSHES_MAP}"), "PushesClosed",
         "kubeadm-registry images collect", severity="warning",
         mend=sh(f"printf 'closed 0\\nfull 0\\n' > {haproxy.PUSHES_MAP}"),
         says="and the run that closed them is gone"),
    Room("the rules that guard loopback are deleted, and their file as well",
         sh(f"mv {paths.GUARD} /root/saved; nft delete table inet {paths.PREFIX}"), "Unguarded",
         "kubeadm-registry init", mend=sh(f"mv /root/saved {paths.GUARD}; systemctl restart UNIT_guard"),
         says="the firewall rules that guard loopback are not loaded"),
    Room("a firewall drops VRRP", no_vrrp, "AdvertsLost", "nft delete rule inet site input",
         says="VRRP advertisements of the holder do not arrive"),
    Room("a firewall drops the storage's port and that between the proxies",
         sh(nft("tcp dport { 3901, 5443 } drop")), "PortBlocked", "nft delete rule inet site input",
         says="it cannot connect to h2 on TCP ports 3901, 5443"),
    Room("a firewall drops the agents' heartbeats from one node", sh(nft("ip saddr 10.88.0.11 udp dport 5444 drop")),
         "PeerSilent", "nft delete rule inet site input",
         says="h2 does not hear the agent of h1"),
    Room("another machine has the virtual IP", on_client("ip address add VIP/32 dev eth0"), "VIPForeign",
         "ip address del", mend=on_client("ip address del VIP/32 dev eth0"),
         says="is in use by a machine that is not a node"),
    Room("another keepalived uses the virtual router ID", other_router, "RouterIDTaken", "virtual_router_id",
         mend=on_client("systemctl stop other-router"), severity="warning",
         says="uses the virtual router ID"),
    Room("another program has port 5000",
         sh("systemctl stop kubeadm-registry-haproxy@1 kubeadm-registry-haproxy@2; "
            "systemd-run --quiet --unit=stranger python3 -m http.server 5000; "
            "until ss -Hltn | grep -q :5000; do sleep 0.1; done; "
            "systemctl start --no-block kubeadm-registry-haproxy@1 kubeadm-registry-haproxy@2"),
         "PortTaken", "systemctl stop stranger.service",
         says="port 5000/tcp is in use by python3"),
    Room("sshd of a node is stopped", sh("systemctl stop ssh.socket ssh || :"), "SSHFails", "ssh -v",
         mend=sh("systemctl start ssh"), severity="warning",
         says="it cannot be reached by SSH"),
    Room("a node is cut off", cut("h3"), "NodeDown", "power h3 on", mend=healed, on="h3",
         says="it does not answer by SSH, and no other node hears its agent"),
    Room("two nodes are cut off", cut("h2", "h3"), "NoQuorum", "power h2, h3 on", mend=healed, also=("NodeDown",),
         down=True, on="",
         says="2 of 3 nodes are down: h2, h3"),
    Room("the canary image is deleted", no_canary, "CanaryMissing", "kubeadm-registry verify", down=True,
         on="",
         says="the canary image is not in the registry"),
    Room("a run was killed while it wrote a file",
         sh(f"touch {paths.ETC}/haproxy/.haproxy.cfg.abcdefghij.kubeadm-registry"), "RunInterrupted",
         "kubeadm-registry init", severity="warning",
         says="a run was interrupted while it wrote a file"),
    Room("a run hangs, and holds the lock", hung_run, "RunHangs", "kill ",
         mend=sh(f"systemctl stop hung-run; rm -f {paths.LOCK} {paths.LOCK}.who"), severity="warning",
         says="a run has held the lock for 2.0 h"),
    Room("a node was reinstalled", reinstalled, "NodeNotInstalled", "kubeadm-registry init --bundle", on="h3",
         says="the registry is not installed on this node"),
)  # fmt: skip


def words(command: str) -> list[str]:
    """A command line of the workstation as arguments of the program."""
    return shlex.split(command.partition("#")[0])[1:]
