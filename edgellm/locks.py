"""A lock that does not hang in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

from edgellm.errors import EdgeLLMError

_locks: weakref.WeakSet[ForkAwareLock] = weakref.WeakSet()


class ForkAwareLock:
    """A lock for what a thread may be changing while another one forks the process.

    The child has only the thread that forked. If another thread held the lock, it will never release it there, and
    what it was changing stays half changed: then taking the lock raises instead of waiting forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.torn = False
        """In a forked child: somebody held the lock when the process was forked."""
        _locks.add(self)

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            EdgeLLMError: it was held when this process was forked from another.
        """
        if self.torn:
            raise EdgeLLMError(
                "this process was forked while another thread was using the model", "load the model in the child"
            )
        self._lock.acquire()

    def release(self) -> None:
        """Let others have it."""
        if not self.torn:
            self._lock.release()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    def renew(self) -> None:
        """In a child, after a fork."""
        self.torn = self.torn or self._lock.locked()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _renew_locks() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
