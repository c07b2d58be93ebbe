"""The cache of torch's CUDA allocator."""

from __future__ import annotations

import gc
import sys

from .report import Freed


def free_cuda_cache() -> Freed:
    """Collect garbage, then release the CUDA allocator's unused blocks to the driver.

    Does nothing if torch is not imported or CUDA is not in use.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return Freed("CUDA cache")
    before = torch.cuda.memory_reserved()
    gc.collect()  # first: only blocks without tensors can be released
    torch.cuda.empty_cache()
    return Freed("CUDA cache", max(0, before - torch.cuda.memory_reserved()))
