"""Patterns of repositories and tags, as shells and .gitignore know them.

``*`` matches any characters but ``/``, ``?`` one of them, ``[0-9]`` one of a set, ``[!0-9]`` one outside it. In a
pattern of repositories ``**`` stands for any number of path components; at the end for one or more.

Regular expressions were rejected: those of Python may take exponential time on a tag that somebody else pushed,
Kubernetes has others (RE2), and the dot in ``1.36`` would match any character.
"""

from __future__ import annotations

import re

from kubeadm_registry.config.rules import Rule, matching
from kubeadm_registry.oci.references import repository_prefix

#: distribution-spec, "Pulling manifests": the longest tag; and the longest name with its host that clients take.
LONGEST_TAG = 128
LONGEST_REPOSITORY = 255
TAG_CHARACTERS = r"[A-Za-z0-9._*?\[\]!-]+"
TAG_TEXT = 'must be a pattern of tags, such as "v*" or "release-[0-9]*"'
REPOSITORY_CHARACTERS = r"[a-z0-9._:/*?\[\]!-]+"
REPOSITORY_TEXT = 'must be a pattern of repositories without a tag, such as "registry.k8s.io/**" or "team/*"'
_WHOLE_TEXT = "must have ** as a whole path component, such as team/**"
_BRACKETS_TEXT = "must close each [ with something in it, and have ] and ! only there, as in [!0-9]"
#: Each may match in as many ways as a name has components, and together their product.
_MOST_DEEP = 2
_DEEP_TEXT = f"must have ** at most {_MOST_DEEP} times"
_PIECE_TEXT = r"[*]|[?]|\[!?[A-Za-z0-9._-]+\]|[A-Za-z0-9._-]"
_PIECE = re.compile(_PIECE_TEXT)
#: Components that are not empty, of which the first may have a port, if it is not all.
_COMPONENTS = "[^/:]+(/[^/:]+)*|[^/]+(/[^/:]+)+"
#: What ``tag`` and ``repository`` check, for an API server. It takes a range that goes backwards, ``[9-0]``.
TAG_RULES = (
    matching(TAG_CHARACTERS, TAG_TEXT),
    Rule("!self.contains('**')", TAG_TEXT),
    matching(rf"(?:{_PIECE_TEXT})+", _BRACKETS_TEXT),
)
REPOSITORY_RULES = (
    matching(REPOSITORY_CHARACTERS, REPOSITORY_TEXT),
    matching(_COMPONENTS, REPOSITORY_TEXT),
    Rule("!self.matches('[^/][*][*]|[*][*][^/]')", _WHOLE_TEXT),
    Rule("!self.matches('[*][*].*[*][*].*[*][*]')", _DEEP_TEXT),
    matching(rf"(?:{_PIECE_TEXT}|\[!?[A-Za-z0-9._:-]+\]|[:/])+", _BRACKETS_TEXT),
)


def tag(glob: str) -> re.Pattern[str]:
    """The expression that a whole tag matches. Raises ValueError if *glob* is not a pattern of tags."""
    if not re.fullmatch(TAG_CHARACTERS, glob) or "**" in glob or len(glob) > LONGEST_TAG:
        raise ValueError(TAG_TEXT)
    return _compiled(_component(glob))


def repository(glob: str) -> re.Pattern[str]:
    """The expression that a whole repository of the registry matches.

    *glob* may name the port of a host as image names do, ``host:5000/x``. Raises ValueError if it is not a pattern of
    repositories.
    """
    host, slash, path = glob.partition("/")
    stored = f"{repository_prefix(host)}{slash}{path}"
    good = re.fullmatch(REPOSITORY_CHARACTERS, stored) and len(glob) <= LONGEST_REPOSITORY
    if not good or ":" in path or (":" in host and not slash) or not all(stored.split("/")):
        raise ValueError(REPOSITORY_TEXT)
    components = stored.split("/")
    if any("**" in one and one != "**" for one in components):
        raise ValueError(_WHOLE_TEXT)
    if components.count("**") > _MOST_DEEP:
        raise ValueError(_DEEP_TEXT)
    *above, last = components
    text = "".join(r"(?:[^/]+/)*" if one == "**" else f"{_component(one)}/" for one in above)
    return _compiled(text + (".+" if last == "**" else _component(last)))


def _component(glob: str) -> str:
    """The expression for one path component, or a tag.

    All between two stars is matched at the first place where it fits and never tried elsewhere (``(?>...)``): a later
    place leaves less for the rest, and the time is linear.
    """
    pieces = _PIECE.findall(glob)
    if "".join(pieces) != glob:
        raise ValueError(_BRACKETS_TEXT)
    texts = [""]
    for piece in pieces:
        if piece == "*":
            texts.append("")
        elif piece == "?":
            texts[-1] += "[^/]"
        elif len(piece) > 1:
            texts[-1] += f"[^{piece[2:-1]}/]" if piece.startswith("[!") else f"(?!/){piece}"
        else:
            texts[-1] += re.escape(piece)
    first, *between = texts
    if not between:
        return first
    *middle, last = between
    return first + "".join(f"(?>[^/]*?{text})" for text in middle if text) + f"[^/]*{last}"


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"{text}\Z")
    except re.error as error:
        raise ValueError(f"must be a valid pattern: {error.msg}") from None
