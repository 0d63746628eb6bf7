"""The way back for a file that was edited since: our keys are taken out of it, and the rest stays. Pure text."""

from __future__ import annotations

from collections.abc import Iterable

from kubeadm_registry.containerd import edit
from kubeadm_registry.containerd.settings import FIX_TOML, Edit, Refused, is_unversioned, other_places

_VERSION = ("version",)


def unmerge(text: str, edits: Iterable[Edit]) -> str:
    """*text* without what *edits* set, as far as it still says so; the reverse of ``plan`` for a file edited since.

    Raises Refused if *text* is not TOML any more, for then nobody can tell what in it is ours.
    """
    changes = list(edits)[::-1]
    # The version last, whenever it was set: it stays as long as anything in the file hangs on it.
    changes.sort(key=lambda change: (*change.table, change.key) == _VERSION)
    for change in changes:
        try:
            text = _undo(change, text)
        except edit.Unparsable as error:
            raise Refused(f"{change.file}: {error}", hint=FIX_TOML) from error
        except edit.Uneditable as error:
            raise Refused(
                f"{change.file}: {error}",
                hint=f"remove {change.key} = {edit.literal(change.new)} manually, then run the command again",
            ) from error
    return text


def _undo(change: Edit, text: str) -> str:
    """*text* without our value. A key that was changed since stays, and ``version`` as long as names hang on it."""
    values = edit.parse(text)
    # A file that was converted to another version since has the key elsewhere.
    places = [(change.table, change.key), *other_places(change.table, change.key)]
    table, key = next((at for at in places if edit.get(values, (*at[0], at[1])) is not None), places[0])
    if edit.get(values, (*table, key)) not in (change.new, *change.former):
        return text
    if (*table, key) == _VERSION and not (is_unversioned(values) and not values.get("imports")):
        return text
    if change.old is not None:
        return edit.set_key(text, table, key, change.old)
    return edit.unset_key(text, table, key, drop_header=change.opens)
