"""Ways to log in to a real API server by a kubeconfig, and what a user reads who cannot."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.upkeep import kubeconfig
from kubeadm_registry.upkeep.clusters import read
from tests.operator.apiserver import ApiServer


def config(cluster: ApiServer, user: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A kubeconfig that trusts the server's certificate."""
    trusted = base64.b64encode(cluster.certificate.read_bytes()).decode()
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": cluster.url, "certificate-authority-data": trusted, **more}}],
        "users": [{"name": "u", "user": user}], "contexts": [{"name": "it", "context": {"cluster": "it", "user": "u"}}],
    }  # fmt: skip


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def plugin(directory: Path, status: Mapping[str, str], *, code: int = 0) -> dict[str, Any]:
    """An exec plugin that prints a credential."""
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\necho no such account >&2\ncat <<END\n{json.dumps(answer)}\nEND\nexit {code}\n")
    script.chmod(0o755)
    return {"exec": {"apiVersion": answer["apiVersion"], "command": str(script), "interactiveMode": "Never"}}


LOGINS: Mapping[str, Callable[[Path, Path], Mapping[str, Any]]] = {
    "token": lambda here, certificates: {"token": "admin-token"},
    "file with a token": lambda here, certificates: {"tokenFile": "token"},
    "certificate, as in admin.conf": lambda here, certificates: {
        "client-certificate-data": encoded(certificates / "admin.crt"),
        "client-key-data": encoded(certificates / "admin.key"),
    },
    "certificate in a file": lambda here, certificates: {
        "client-certificate": str(certificates / "admin.crt"),
        "client-key": str(certificates / "admin.key"),
    },
    "plugin": lambda here, certificates: plugin(here, {"token": "admin-token"}),
    "plugin with a certificate": lambda here, certificates: plugin(here, {
        "clientCertificateData": (certificates / "admin.crt").read_text(),
        "clientKeyData": (certificates / "admin.key").read_text(),
    }),
}  # fmt: skip


@pytest.mark.parametrize("login", LOGINS)
def test_ways_to_log_in(cluster: ApiServer, certificates: Path, tmp_path: Path, login: str) -> None:
    (tmp_path / "token").write_text("admin-token")
    # A colon would separate files in the variable KUBECONFIG.
    file = tmp_path / "kube:config"
    file.write_text(yaml.safe_dump(config(cluster, LOGINS[login](tmp_path, certificates))))
    before = file.read_bytes()
    api = kubeconfig.by_kubeconfig(file)
    assert read(api).problems == ()
    api.close()
    assert file.read_bytes() == before


def failing(path: Path, document: object) -> Error:
    """What comes of reading by the kubeconfig *document*."""
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    with pytest.raises(Error) as caught:
        read(kubeconfig.by_kubeconfig(path, patience=1))
    return caught.value


def test_credentials_that_the_server_does_not_know(cluster: ApiServer, tmp_path: Path) -> None:
    error = failing(tmp_path / "c", config(cluster, {"token": "other"}))
    assert (error.code, error.exit_code) == ("ClusterUnauthorized", 4)
    assert str(error) == f"{cluster.url} does not accept the credentials"


def test_nobody_in_particular_may_read_nothing(cluster: ApiServer, tmp_path: Path) -> None:
    error = failing(tmp_path / "c", config(cluster, {}))
    assert error.code == "ClusterForbidden"
    assert 'User "system:anonymous" cannot get resource "namespaces"' in str(error)


def test_a_server_with_another_certificate(cluster: ApiServer, certificates: Path, tmp_path: Path) -> None:
    other = {"certificate-authority-data": encoded(certificates / "ca.crt")}
    error = failing(tmp_path / "c", config(cluster, {"token": "admin-token"}, **other))
    assert (error.code, error.exit_code) == ("ClusterNotTrusted", 4)
    assert (
        str(error)
        == f"the certificate of {cluster.url} cannot be verified: self-signed certificate in certificate chain"
    )


def test_the_name_in_the_certificate(cluster: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "c").write_text(
        yaml.safe_dump(config(cluster, {"token": "admin-token"}, **{"tls-server-name": "kubernetes.default.svc"}))
    )
    assert read(kubeconfig.by_kubeconfig(tmp_path / "c")).problems == ()
    other = config(cluster, {"token": "admin-token"}, **{"tls-server-name": "other.example"})
    assert failing(tmp_path / "c", other).code == "ClusterNotTrusted"


def test_a_plugin_that_fails_is_no_anonymous_login(cluster: ApiServer, tmp_path: Path) -> None:
    error = failing(tmp_path / "c", config(cluster, plugin(tmp_path, {"token": "x"}, code=3)))
    assert isinstance(error, ConfigError)
    assert error.code == "KubeconfigInvalid"
    assert "the exec plugin gave no credentials: exec: process returned 3. no such account" in str(error)
