"""Who may use the engine at once: a request whose worker died with it begins the next attempt alone.

A prompt that kills its worker takes everything in flight there with it. Whatever was in flight is tried again alone:
on the last attempt throughout, so that only the request whose fault it is can fail for it; before that until the
engine has written its first text (for a few seconds at most), so that a worker is not blocked by each of many
bystanders for a whole answer.
Nobody holds a request while they wait here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SoleUse:
    """The engine for one request alone, until it is shared or given back."""

    def __init__(self, share: "SharedUses") -> None:
        self._uses = share
        self.shared = False

    def share(self) -> None:
        """Let others in beside this one from now on. Idempotent; does not block."""
        self._uses.let_others_in(self)


class SharedUses:
    """Shared or sole use of one engine. Whoever waits for sole use goes before all who come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_shared = 0
        self._num_waiting_alone = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Block until nobody uses or waits for the engine alone, and use it beside others while the block runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and self._num_waiting_alone == 0)
            self._num_shared += 1
        try:
            yield
        finally:
            self._leave(shared=True)

    @contextmanager
    def sole(self) -> Iterator[SoleUse]:
        """Block until nobody else uses the engine, and have it alone while the block runs, or until it is shared."""
        with self._changed:
            self._num_waiting_alone += 1
            self._changed.wait_for(lambda: not self._alone and self._num_shared == 0)
            self._num_waiting_alone -= 1
            self._alone = True
        use = SoleUse(self)
        try:
            yield use
        finally:
            self._leave(shared=use.shared)

    def let_others_in(self, use: SoleUse) -> None:
        """See `SoleUse.share`."""
        with self._changed:
            if not use.shared:
                use.shared = True
                self._alone = False
                self._num_shared += 1
                self._changed.notify_all()

    def _leave(self, *, shared: bool) -> None:
        with self._changed:
            if shared:
                self._num_shared -= 1
            else:
                self._alone = False
            self._changed.notify_all()
