"""The way to a cluster: a kubeconfig file, or what Kubernetes puts into each pod.

Both are read by the ``kubernetes`` client, which knows all forms of them and renews tokens. It is imported when it is
needed: that costs half a second and 35 MB.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
import yaml

from kubeadm_registry.config import yamlfile
from kubeadm_registry.disk import read_text
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.printable import shown
from kubeadm_registry.upkeep.api import PATIENCE, Api, clause

if TYPE_CHECKING:
    from kubernetes.client import Configuration

#: Bytes; files with the certificates of a hundred clusters are smaller.
_LARGEST = 4 * 1024 * 1024
#: Where the token and the CA of a pod's service account are:
#: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HINT = "check it with `kubectl --kubeconfig FILE get --raw /version`, or use another kubeconfig"


def by_kubeconfig(path: Path, *, patience: float = PATIENCE, agent: str = "kubeadm-registry") -> Api:
    """A client of the API server in the current context of the file *path*; it has sent no request yet.

    Credentials may be a token, a client certificate, a user with password, or an exec plugin, which is run. The file is
    not changed. Raises ConfigError (KubeconfigUnreadable, KubeconfigInvalid).
    """
    document = _read(path)
    from kubernetes.client import Configuration
    from kubernetes.config.kube_config import KubeConfigLoader

    configuration: Any = Configuration()
    with tempfile.TemporaryDirectory() as keys, _logged() as said, _as_invalid(path):
        loader: Any = KubeConfigLoader
        loaded = loader(config_dict=document, config_base_path=str(path.absolute().parent), temp_file_path=keys)
        loaded.load_and_set(configuration)
        if "proxy-url" in (loaded._cluster or {}):
            configuration.no_proxy = ""  # NO_PROXY is for the proxies that the environment names
        # The loader goes on without credentials, as a stranger, when a plugin fails.
        user = loaded._user or {}
        if "exec" in user and not (getattr(loaded, "token", "") or getattr(loaded, "cert_file", "")):
            raise ValueError(f"the exec plugin gave no credentials: {' '.join(said) or 'unknown cause'}")
        return _api(configuration, patience, agent)


def in_cluster(
    *, directory: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ, patience: float = PATIENCE,
    agent: str = "kubeadm-registry",
) -> Api:  # fmt: skip
    """The API server of the cluster in which this process runs as a pod, by the pod's service account.

    Raises ConfigError (NotInCluster).
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration: Any = Configuration()
    loader: Any = InClusterConfigLoader
    try:
        loader(
            token_filename=str(directory / "token"), cert_filename=str(directory / "ca.crt"), environ=environment
        ).load_and_set(configuration)
        return _api(configuration, patience, agent)
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(
            f"this process has no service account of a cluster: {error}",
            hint="pass a kubeconfig, or set automountServiceAccountToken in the pod",
            code="NotInCluster",
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """The mapping in the file *path*, which has a current context."""
    try:
        text = read_text(path, _LARGEST)
    except (OSError, ValueError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"cannot read the kubeconfig {path}: {why}", hint="check the path", code="KubeconfigUnreadable"
        ) from error
    with _as_invalid(path):
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"it is not valid YAML: {yamlfile.flaw(error, text)}") from error
        if not isinstance(document, dict):
            raise ValueError("it does not contain a mapping")
        if not document.get("clusters"):
            raise ValueError("it names no clusters")
        if not document.get("current-context"):
            raise ValueError("it has no current-context")
        return {"contexts": [], "users": [], **document}


@contextmanager
def _as_invalid(path: Path) -> Iterator[None]:
    """Whatever the loader meets in a file that is not as it expects, as one error."""
    from kubernetes.config import ConfigException

    try:
        yield
    except RecursionError as error:
        raise ConfigError(
            f"{path} is not a valid kubeconfig: it is nested too deeply", hint=_HINT, code="KubeconfigInvalid"
        ) from error
    except (
        ConfigException, yaml.YAMLError, LookupError, TypeError, ValueError, OverflowError, AttributeError, OSError,
    ) as error:  # fmt: skip
        why = clause(str(error)) or type(error).__name__
        raise ConfigError(f"{path} is not a valid kubeconfig: {why}", hint=_HINT, code="KubeconfigInvalid") from error


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What is logged meanwhile, instead of on standard error: the loader has no other way to say it."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    root, keep = logging.getLogger(), Keep(logging.ERROR)
    root.addHandler(keep)
    try:
        yield said
    finally:
        root.removeHandler(keep)


def _api(configuration: Configuration, patience: float, agent: str) -> Api:
    """The API server that *configuration* names. Raises ValueError and OSError for certificates that cannot be used."""
    from kubernetes.client.rest import should_bypass_proxies

    given: Any = configuration
    server = given.host
    if not server.startswith(("https://", "http://")):
        raise ValueError(f"server is {shown(server)}, expected a URL that begins with https://")
    # One connection: pages come one after the other.
    settings: dict[str, Any] = {"num_pools": 1, "maxsize": 1, "block": True}
    if server.startswith("https://"):
        settings["ssl_context"] = _tls(given)
        if given.tls_server_name:
            settings["server_hostname"] = given.tls_server_name
    skip: Any = should_bypass_proxies
    if given.proxy and not skip(server, given.no_proxy or ""):
        pool: urllib3.PoolManager = urllib3.ProxyManager(given.proxy, **settings)
    else:
        pool = urllib3.PoolManager(**settings)

    def authorization() -> str:
        # A file ends with a newline (tokenFile), which is no part of the token to kubectl either.
        return str(given.get_api_key_with_prefix("BearerToken", alias="authorization") or "").strip()

    if not re.fullmatch("[ -~]*", authorization()):
        raise ValueError("the token is not one line of ASCII characters")
    return Api(server, pool, authorization, patience=patience, agent=agent)


def _tls(given: Any) -> ssl.SSLContext:
    """As kubectl does it. The certificates are read here, so their files may go away afterwards."""
    context = ssl.create_default_context(cafile=given.ssl_ca_cert)
    # From Python 3.13 on certificates must have all that RFC 5280 asks for, which CAs of clusters do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not given.verify_ssl:
        # It is the user's own wish, written in the kubeconfig, and kubectl does not warn either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if given.cert_file:
        context.load_cert_chain(given.cert_file, given.key_file)
    return context
