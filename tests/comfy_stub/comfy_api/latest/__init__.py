"""What the pack imports from `comfy_api.latest`."""

from abc import ABC, abstractmethod

from . import io, ui


class ComfyExtension(ABC):
    async def on_load(self) -> None:  # noqa: B027 (empty in the host too)
        """Called once by the host, before the list of nodes is asked for."""

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes of the extension."""


__all__ = ["ComfyExtension", "io", "ui"]
