"""The nodes, for ComfyUI. Imported by `comfy_entrypoint` only: everything here needs ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .display_anything import DisplayAnything
from .free_memory import FreeMemory
from .llm_describe import LLMDescribe
from .llm_image_refine import LLMImageRefine
from .load_folder import LoadImagesFromFolder
from .ollama_options import OllamaOptions
from .ollama_process import OllamaProcess
from .ready_instructions import ReadyInstructions
from .save_caption import SaveCaption
from .sdxl_refiner import SDXLRefiner
from .text_to_filename import TextToFilename
from .wildcard_processor import WildcardProcessor


class ImageRefineryExtension(ComfyExtension):
    """The list of nodes that ComfyUI asks for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LLMImageRefine,
            SDXLRefiner,
            LLMDescribe,
            OllamaProcess,
            OllamaOptions,
            ReadyInstructions,
            WildcardProcessor,
            DisplayAnything,
            FreeMemory,
            LoadImagesFromFolder,
            SaveCaption,
            TextToFilename,
        ]
