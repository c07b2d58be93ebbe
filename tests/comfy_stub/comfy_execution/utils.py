"""Which node runs in this context."""

from contextvars import ContextVar, Token
from typing import NamedTuple

from typing_extensions import Self


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None


_current: ContextVar[ExecutionContext | None] = ContextVar("executing", default=None)


def get_executing_context() -> ExecutionContext | None:
    """None outside a run, and in threads that the node started itself."""
    return _current.get()


class CurrentNodeContext:
    def __init__(self, prompt_id: str, node_id: str, list_index: int | None = None) -> None:
        self.context = ExecutionContext(prompt_id, node_id, list_index)
        self.token: Token[ExecutionContext | None] | None = None

    def __enter__(self) -> Self:
        self.token = _current.set(self.context)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.token is not None:
            _current.reset(self.token)
