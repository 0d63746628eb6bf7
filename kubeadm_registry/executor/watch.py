"""What is looked at again while a run goes on: what was checked at its beginning says little of an hour later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubeadm_registry.errors import Error
from kubeadm_registry.executor.checks import paused, pinned, withdrawn
from kubeadm_registry.retention import Reason
from kubeadm_registry.retention.order import LASTS, Order
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trashed

#: Seconds for which what people have said is not read again.
_SAID = 10.0


@dataclass(slots=True)
class Watch:
    """Whether *order* may still be carried out, asked before each image that goes.

    *standing* reads what people have said, of which *said* is known since *heard*; *doubts* returns why the registry
    may not be whole; *clock* is this node's, in seconds since 1970.
    """

    order: Order
    clock: Callable[[], float]
    doubts: Callable[[], Sequence[Reason]]
    standing: Callable[[], Standing]
    said: Standing
    heard: float

    def is_over(self) -> bool:
        """Whether the order is too old by now: what is left is for the next one, which knows what is in use then."""
        return self.clock() - self.order.made > LASTS

    def keeps(self, image: Trashed) -> str:
        """Why *image* stays; empty if it may go. Raises Error (OrderRefused) if nothing may go any more."""
        now = self.clock()
        if abs(now - self.heard) >= _SAID:
            self.said, self.heard = self.standing(), now
        if reasons := [*self.doubts(), *paused(self.said), *withdrawn(self.order, self.said)]:
            text = "; ".join(map(str, reasons))
            raise Error(f"nothing more is deleted: {text}", code="OrderRefused", hint=reasons[0].hint)
        return pinned(image, self.said, int(now))
