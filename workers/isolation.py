"""Who may use the engine at once: a request on its last attempt has it alone.

A prompt that kills its worker takes everything in flight there with it. The last attempt at each of them is made
alone, so that only the one whose fault it is can fail for it. Nobody holds a request while they wait here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Isolation:
    """Shared or sole use. Whoever waits for sole use goes before all who come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._waiting_alone = 0
        self._alone = False

    @contextmanager
    def using(self, *, alone: bool) -> Iterator[None]:
        """Block until the engine may be used, and use it while the block runs."""
        with self._changed:
            if alone:
                self._waiting_alone += 1
                self._changed.wait_for(lambda: not self._alone and self._shared == 0)
                self._waiting_alone -= 1
                self._alone = True
            else:
                self._changed.wait_for(lambda: not self._alone and self._waiting_alone == 0)
                self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                if alone:
                    self._alone = False
                else:
                    self._shared -= 1
                self._changed.notify_all()
