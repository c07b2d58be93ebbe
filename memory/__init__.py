"""Free the GPU memory of ComfyUI's models, of language-model servers, and of PyTorch's cache.

Every action is idempotent, reports bytes, and works without CUDA, ComfyUI or Ollama.
"""

from .comfyui import free_comfyui
from .cuda import free_cuda_cache
from .policy import StageMemory, shares_gpu
from .report import Freed, log_freed
from .unload import finish_pending_unloads, unload_in_background, unload_model

__all__ = [
    "Freed",
    "StageMemory",
    "finish_pending_unloads",
    "free_comfyui",
    "free_cuda_cache",
    "log_freed",
    "shares_gpu",
    "unload_in_background",
    "unload_model",
]
