"""Notice at once, and without polling, that a client has closed its connection."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType


class ClientWatch:
    """Watches one connection for the length of one request; a context manager.

    A thread sleeps until the client closes or the request ends. What the client sends
    meanwhile is left unread (the next request of a kept connection); it ends the watching.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._wake, self._waker = socket.socketpair()
        self._lock = threading.RLock()
        self._callback: Callable[[], object] | None = None
        self._gone = False
        self._thread = threading.Thread(target=self._watch, name="client watch", daemon=True)

    def __enter__(self) -> ClientWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.on_gone(None)
        self._waker.close()
        self._thread.join()
        self._wake.close()

    @property
    def gone(self) -> bool:
        """Whether the client has closed its connection."""
        return self._gone

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        """Set what is called when the client goes, at once if it is gone; None: nothing.

        When this returns, the callback set before is not running and will not run any more.
        """
        with self._lock:
            self._callback = callback
            if self._gone and callback:
                callback()

    def mark_gone(self) -> None:
        """Take the client for gone, for instance because writing to it failed."""
        with self._lock:
            if not self._gone:
                self._gone = True
                if self._callback:
                    self._callback()

    def _watch(self) -> None:
        # Not select.select, which refuses descriptors above 1023: large programs have them.
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            readable = [key.fileobj for key, _ in selector.select()]
        if self._wake in readable:
            return
        closed = True  # a reset connection raises instead of reading as empty
        with contextlib.suppress(OSError):
            closed = not self._connection.recv(1, socket.MSG_PEEK)
        if closed:
            self.mark_gone()
