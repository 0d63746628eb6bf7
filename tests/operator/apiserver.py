"""A kube-apiserver with its etcd on loopback, and kubectl: what the operator's objects and rules are tried against.

No kubelet and no controllers: objects are stored, defaulted, validated, admitted and watched as in any cluster.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from kubeadm_registry.custom_resources.names import OPERATOR
from tests.lab.command import run, wait_until
from tests.lab.programs import program

#: The users by name, each with its groups. Nobody but the operator is bound by RBAC here: admission comes after it.
USERS = {
    "admin": ("admin", "system:masters"),
    "operator": (OPERATOR, "system:masters"),
}
#: Seconds until kube-apiserver answers on a machine that has other work.
_START = 120.0
_END = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether kubectl was content, and all that it said in one line."""

    taken: bool
    text: str


class ApiServer:
    """A running API server; *directory* holds its certificates, and a kubeconfig for each user; *etcd* is its URL."""

    def __init__(self, directory: Path, port: int, etcd: str, processes: tuple[Process, Process]) -> None:
        self._store, self._process = processes
        self.directory = directory
        self.etcd = etcd
        self.url = f"https://127.0.0.1:{port}"
        self._port = port

    @property
    def port(self) -> int:
        """Where it answers on loopback."""
        return self._port

    @contextmanager
    def away(self) -> Iterator[None]:
        """It takes connections and answers nothing, as a process that hangs, for the length of a ``with``."""
        with self._process.stopped():
            yield

    def wait(self) -> None:
        """Until it is ready."""
        wait_until(
            "kube-apiserver to be ready", lambda: self.ask("get", "--raw=/readyz").taken, seconds=_START, every=0.5
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """What is written in a ``with`` is forgotten at its end: etcd has a copy of its disk from the beginning then.

        The API server is away meanwhile, and revisions go on from those of the copy.
        """
        data = self.directory / "etcd"
        with tempfile.TemporaryDirectory(prefix="etcd-") as folder:
            copy = Path(folder) / "copy"
            with self._store.stopped():
                shutil.copytree(data, copy)
            yield
            for each in (self._process, self._store):
                each.end()
            shutil.rmtree(data)
            shutil.copytree(copy, data)
            for each in (self._store, self._process):
                each.start()
            self.wait()

    @property
    def certificate(self) -> Path:
        """The certificate that the server made for itself, which is its own CA."""
        return self.directory / "certificates/apiserver.crt"

    def kubeconfig(self, user: str = "admin") -> Path:
        """The file by which *user* logs in."""
        return self.directory / f"{user}.kubeconfig"

    def kubectl(self, *argv: str | Path, user: str = "admin", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl; a refusal is an answer."""
        return run(
            program("kubectl"), f"--kubeconfig={self.kubeconfig(user)}",
            f"--cache-dir={self.directory / 'discovery' / user}", *argv,
            check=False, stdin=stdin,
        )  # fmt: skip

    def send(self, verb: str, objects: Sequence[Mapping[str, Any]] | str, *options: str, user: str = "admin") -> Answer:
        """``kubectl VERB OPTIONS -f -`` with *objects*, or with the text of a file."""
        text = objects if isinstance(objects, str) else yaml.safe_dump_all(objects)
        return self.ask(verb, *options, "-f", "-", user=user, stdin=text)

    def ask(self, *argv: str | Path, user: str = "admin", stdin: str = "") -> Answer:
        """Run kubectl and take its answer, whatever it is."""
        done = self.kubectl(*argv, user=user, stdin=stdin)
        return Answer(done.returncode == 0, " ".join((done.stdout + done.stderr).split()))

    def dry_run(self, path: str, objects: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
        """What creating each of *objects* at *path* would come to, as strictly as by kubectl but without it."""
        context = ssl._create_unverified_context()  # noqa: S323  a certificate of this test, on loopback
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=context)
        headers = {"Authorization": "Bearer admin-token", "Content-Type": "application/json"}
        for each in objects:
            connection.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", json.dumps(each), headers)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            yield Answer(answer.status == http.client.CREATED, str(body.get("message", "")))
        connection.close()

    def get(self, *argv: str) -> Any:
        """The object or list that ``kubectl get ARGV`` shows. Raises AssertionError if there is none."""
        done = self.kubectl("get", *argv, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def free_port() -> int:
    """A TCP port that nothing on loopback uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(*flags: str) -> Iterator[ApiServer]:
    """An API server of its own, with more *flags*. Afterwards its processes and files are gone."""
    with ExitStack() as stack:
        # Not below pytest's directory, which keeps those of three runs: etcd allocates 64 MB for its log alone.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apiserver-")))
        port, client, peer = free_port(), f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        _credentials(directory, f"https://127.0.0.1:{port}")
        store = stack.enter_context(Process(directory, "etcd", (
            "--name=one", f"--data-dir={directory / 'etcd'}", "--unsafe-no-fsync", "--log-level=error",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=one={peer}",
        )))  # fmt: skip
        key = directory / "service-account.key"
        process = stack.enter_context(Process(directory, "kube-apiserver", (
            f"--etcd-servers={client}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--cert-dir={directory / 'certificates'}", "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", f"--token-auth-file={directory / 'tokens'}",
            "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount", *flags,
        )))  # fmt: skip
        server = ApiServer(directory, port, client, (store, process))
        server.wait()
        yield server


def _credentials(directory: Path, url: str) -> None:
    run("openssl", "genrsa", "-out", directory / "service-account.key", "2048")
    tokens = [f'{user}-token,{name},{user},"{groups}"\n' for user, (name, groups) in USERS.items()]
    (directory / "tokens").write_text("".join(tokens))
    for user in USERS:
        (directory / f"{user}.kubeconfig").write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": user, "user": {"token": f"{user}-token"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": user}}],
        }))  # fmt: skip


class Process:
    """The program *name* from the beginning to the end of a ``with``; it ends as well when this process is killed
    (prctl(2)). What it says is in a log in *directory*."""

    def __init__(self, directory: Path, name: str, flags: Sequence[str]) -> None:
        self._name = name
        self._log = directory / f"{name}.log"
        self._argv = ["setpriv", "--pdeathsig=KILL", "--", str(program(name)), *flags]
        self._started: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, or start it again."""
        with self._log.open("ab") as log:
            self._started = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def end(self) -> None:
        """End it, by force if need be."""
        self._started.terminate()
        try:
            self._started.wait(_END)
        except subprocess.TimeoutExpired:
            self._started.kill()
            self._started.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs for the length of a ``with``."""
        self._started.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._started.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        code = self._started.poll()
        self.end()
        if kind is not None and code is not None:
            tail = self._log.read_text(errors="replace").splitlines()[-5:]
            raise AssertionError(f"{self._name} ended with {code}: " + "\n".join(tail)) from None
