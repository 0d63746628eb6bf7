"""Images from the registries that their names say, kept in the cache: what was fetched is never fetched again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from kubeadm_registry.bundle.failures import cache_damaged, refused, unavailable
from kubeadm_registry.bundle.images import platforms_of, prune, require
from kubeadm_registry.bundle.layout import Layout, PiecesStore
from kubeadm_registry.bundle.make.cache import Blobs, Taken
from kubeadm_registry.bundle.make.context import BuildContext, locked
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import Reference, parse
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api, Upstream, cosign_tags, retry
from kubeadm_registry.registry.logins import Logins

#: Requests at a time. Public registries slow down who asks for more.
WORKERS = 6
#: Seconds without a byte more until a registry is given up.
PATIENCE = 30.0
#: Seconds to wait for another run that fetches into the same cache.
LOCK_DEADLINE = 3600.0
#: An index may hold an index; real ones do not.
_DEPTH = 4


class _NotThere(BundleError):
    """The registry does not have a manifest."""

    code = "BundleInputUnavailable"


def _upstream(host: str) -> Api:
    logins = Logins(host)
    return Upstream(host, logins.of, advice=logins.advice)


@dataclass(frozen=True, slots=True)
class FromRegistries:
    """Images by their full *names*, and with *referrers* what refers to them: signatures, attestations, SBOMs.

    *connect* leads to the registry of a host; *patience* is in seconds.
    """

    names: tuple[str, ...]
    referrers: bool = False
    connect: Callable[[str], Api] = _upstream
    patience: float = PATIENCE

    def open(self, context: BuildContext, platforms: Sequence[oci.Platform]) -> Layout:
        """Fetch what the cache does not have; raises BundleError that tells of every image that cannot be had."""
        references = {name: reference for name in self.names if (reference := parse(name))}
        hosts = {reference.host for reference in references.values()}
        with ExitStack() as stack:
            registries = {host: stack.enter_context(self.connect(host)) for host in sorted(hosts)}
            context.progress(f"resolving {counted(len(references), 'image')} at {', '.join(sorted(hosts))}")
            pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
            store = Blobs(context.cache, thorough=context.thorough)
            trees = [_Tree(name, one, registries[one.host], store, self.patience) for name, one in references.items()]
            _all(pool.map(lambda tree: _caught(lambda: tree.read(platforms)), trees))
            if self.referrers:
                context.progress("looking for signatures, attestations and SBOMs")
                trees += self._referring(pool, trees, context)
            with locked(context.cache / "blobs.lock", context.progress, deadline=LOCK_DEADLINE):
                self._fetch(pool, store, trees, context)
        blobs = {blob.digest: (blob.size, store.opener(blob.digest)) for tree in trees for blob in tree.blobs}
        entries = [tree.root for tree in trees]
        manifests = [content for tree in trees for content in tree.manifests]
        layout = Layout(
            PiecesStore.of(entries, manifests, blobs), f"the cache in {context.cache}", flaw=cache_damaged
        )  # fmt: skip
        for tree in trees:
            # An index was pruned already; an image without one says it here.
            if not (tree.reference.digest or tree.refers):
                require(tree.name, platforms_of(layout, tree.root, context.held), platforms)
        return layout

    def _referring(self, pool: ThreadPoolExecutor, trees: Sequence[_Tree], context: BuildContext) -> list[_Tree]:
        """What refers to the manifests of *trees*, and to that again: an SBOM may be signed.

        What was deleted may still be in a list that clients keep, and none can push what is in no format known here:
        that is told and left out.
        """
        found: dict[str, _Tree] = {}
        lost: set[str] = set()
        new = list(trees)
        for _ in range(_DEPTH):
            asked = [(tree, digest) for tree in new for digest in tree.digests]
            answers = list(pool.map(lambda one: one[0].refer(one[1]), asked))
            _all(answer for answer in answers if isinstance(answer, Error))
            told = [(tree, answer) for (tree, _), answer in zip(asked, answers, strict=True)]
            names = {name: tree for tree, answer in told if not isinstance(answer, Error) for name in answer}
            new = []
            for name, subject in sorted(names.items()):
                reference = parse(name)
                if reference is not None and name not in found:
                    found[name] = _Tree(name, reference, subject.registry, subject.store, self.patience, refers=True)
                    new.append(found[name])
            if not new:
                break
            outcomes = list(pool.map(lambda tree: _caught(lambda: tree.read(())), new))
            for tree, error in zip(new, outcomes, strict=True):
                if isinstance(error, _NotThere) or (error and error.code == "BundleInputRefused"):
                    lost.add(tree.name)
                    context.progress(f"not included: {error.message}", level="warning")
            _all(error for tree, error in zip(new, outcomes, strict=True) if tree.name not in lost)
            new = [tree for tree in new if tree.name not in lost]
        return [tree for name, tree in found.items() if name not in lost]

    def _fetch(self, pool: ThreadPoolExecutor, store: Blobs, trees: Iterable[_Tree], context: BuildContext) -> None:
        wanted = ((blob, tree) for tree in trees for blob in tree.blobs if blob.digest not in context.held)
        missing = {blob.digest: (blob, tree) for blob, tree in wanted if not store.has(blob)}
        if not missing:
            return
        total = sum(blob.size for blob, _ in missing.values())
        context.progress(f"downloading {counted(len(missing), 'blob')}, {total / 1e6:.1f} MB")
        taken = Taken(total, context.meter)

        def one(item: tuple[oci.Descriptor, _Tree]) -> Error | None:
            blob, tree = item
            found = _caught(lambda: store.fetch(blob, tree.registry, tree.reference.path, self.patience, taken))
            if isinstance(found, RegistryError):
                return unavailable(f"{tree.name}: {found.message}", hint=found.hint or _why_not(blob, found.status))
            if isinstance(found, BundleError):
                found.message = f"{tree.name}: {found.message}"
            return found

        try:
            # The large ones first, so that none of them is alone at the end.
            _all(pool.map(one, sorted(missing.values(), key=lambda item: -item[0].size)))
        except BaseException:
            taken.stop()  # the pool waits for its threads, and Ctrl-C is not to wait for gigabytes
            raise


@dataclass
class _Tree:
    """One image: its manifests as they are read, and the blobs that they need."""

    name: str
    reference: Reference
    registry: Api
    store: Blobs
    patience: float
    refers: bool = False
    """Whether it is there only because it refers to another one."""
    manifests: list[bytes] = field(default_factory=list)
    blobs: list[oci.Descriptor] = field(default_factory=list)
    root: oci.Descriptor = field(init=False)

    def read(self, platforms: Sequence[oci.Platform]) -> None:
        """Ask for the manifests; of an index only for those of *platforms*, unless the name has a digest.

        Raises BundleError; what is not valid is the registry's, and no damaged bundle.
        """
        try:
            self._read(platforms)
        except BundleError as error:
            if error.code == "BundleDamaged":
                raise refused(error.message, hint="push it again with a current client") from error
            raise

    def _read(self, platforms: Sequence[oci.Platform]) -> None:
        content, kind = self._ask(self.reference.wanted)
        if kind in oci.INDEXES and platforms and not self.reference.digest:
            content = prune(content, platforms, self.name)
        self.root = oci.Descriptor(
            media_type=kind, digest=oci.digest_of(content), size=len(content),
            annotations={oci.REFERENCE_NAME: self.name},
        )  # fmt: skip
        self._take(content, kind, _DEPTH)

    @property
    def digests(self) -> list[str]:
        """Those of all its manifests."""
        return [oci.digest_of(content) for content in self.manifests]

    def refer(self, digest: str) -> list[str] | Error:
        """The names of what refers to one of its manifests, by the registry's list and by the tags that cosign makes.

        Or why they cannot be told. Source: distribution-spec, "Listing Referrers".
        """
        place, path = f"{self.reference.host}/{self.reference.path}", self.reference.path

        def look() -> list[str]:
            listed = [str(entry.get("digest")) for entry in self.registry.referrers(path, digest)]
            there = [tag for tag in cosign_tags(digest) if self.registry.digest(path, tag) is not None]
            return [*(f"{place}@{one}" for one in listed), *(f"{place}:{tag}" for tag in there)]

        try:
            return retry(look, self.patience)
        except RegistryError as error:
            return unavailable(f"what refers to {self.name}: {error.message}", hint=error.hint)

    def _found(self, wanted: str) -> tuple[bytes, str] | None:
        """The manifest and its type; the one in the cache, if *wanted* still means it.

        Docker Hub counts who reads a manifest, and not who looks for it (https://docs.docker.com/docker-hub/usage/pulls).
        """
        path, name = self.reference.path, f"{self.reference.host}/{self.reference.path}@{wanted}"
        kept = self.store.kept(name)
        if kept is not None:
            digest = oci.digest_of(kept[0])
            with suppress(RegistryError):  # not every registry can be asked so
                if digest == wanted or digest == self.registry.digest(path, wanted):
                    return kept
        found = self.registry.manifest_of_type(path, wanted)
        if found is not None and found[1] in oci.TREES:
            self.store.keep(name, *found)
        return found

    def _ask(self, wanted: str) -> tuple[bytes, str]:
        path = self.reference.path
        try:
            found = retry(lambda: self._found(wanted), self.patience)
        except RegistryError as error:
            raise unavailable(
                f"{self.name}: {error.message}",
                hint=error.hint or "check the name, the network, and the credentials (podman login, docker login)",
            ) from error
        if found is None:
            raise _NotThere(
                f"{self.name}: {self.reference.host} has no {path}:{wanted}",
                hint="check the name"
                if wanted == self.reference.wanted
                else "its index lists that: push the image again, or choose available platforms with --platform and a "
                "name without a digest",
            )
        content, kind = found
        if kind not in oci.TREES or len(content) > oci.MAX_MANIFEST:
            raise refused(
                f"{self.name} is {kind[:200] or 'of no type'} with {len(content)} bytes, not an image in a "
                "supported format",
                hint="check whether a proxy answers in place of the registry"
                if kind == "text/html"
                else "push it again with a current client",
            )
        return content, kind

    def _take(self, content: bytes, kind: str, depth: int) -> None:
        if depth == 0:
            raise refused(f"{self.name}: indexes are nested too deep", hint="use the name of the image itself")
        for entry in oci.children(kind, content, f"{self.name}: {oci.digest_of(content)}"):
            if kind in oci.MANIFESTS:
                self.blobs.append(entry)
            else:
                self._take(self._ask(entry.digest)[0], entry.media_type, depth - 1)
        self.manifests.append(content)


def _why_not(blob: oci.Descriptor, status: int) -> str:
    """What to do where a registry answered with *status*, or not at all, for *blob*, which its own manifest names."""
    if status != HTTPStatus.NOT_FOUND:
        return "check the network and the registry, then run the command again; it resumes where it stopped"
    if oci.NOT_DISTRIBUTED.search(blob.media_type):
        return (
            "registries do not hold such layers of Windows; omit the digest, so that only other platforms are included"
        )
    return "check the image in its registry, or push it again"


def _caught(work: Callable[[], None]) -> Error | None:
    try:
        work()
    except Error as error:
        return error
    return None


def _all(outcomes: Iterable[Error | None]) -> None:
    """Raise one error for all that went wrong: a list of images is mended at once, not name by name."""
    failures = [outcome for outcome in outcomes if outcome is not None]
    if not failures:
        return
    first = failures[0]
    if len(failures) == 1:
        raise first
    lines = "\n".join(f"  {str(failure).strip()}" for failure in failures)
    raise BundleError(
        f"{len(failures)} images or blobs could not be downloaded:\n{lines}",
        code=first.code,
        hint=first.hint,
    )
