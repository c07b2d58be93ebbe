"""The cache of torch's CUDA allocator."""

from __future__ import annotations

import gc
import sys

from .report import Freed


def free_cuda_cache() -> Freed:
    """Collect garbage, then hand the allocator's unused blocks back to the driver.

    Without torch, or without CUDA in use, there is nothing to do; torch is never imported for this.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return Freed("CUDA cache")
    before = torch.cuda.memory_reserved()
    gc.collect()  # first: only blocks that no tensor holds can go back
    torch.cuda.empty_cache()
    return Freed("CUDA cache", max(0, before - torch.cuda.memory_reserved()))
