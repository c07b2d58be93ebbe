"""The nodes, for ComfyUI. Imported by `comfy_entrypoint` only: everything here needs ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .caption_folder import CaptionFolder
from .check_setup import CheckSetup
from .describe_tiles import DescribeTiles
from .display_anything import DisplayAnything
from .free_memory import FreeMemory
from .host.setup import add_report_route
from .llm_describe import LLMDescribe
from .llm_image_refine import LLMImageRefine
from .load_folder import LoadImagesFromFolder
from .ollama_options import OllamaOptions
from .ollama_process import OllamaProcess
from .ready_instructions import ReadyInstructions
from .refine_folder import RefineFolder
from .refine_splat import RefineSplat
from .refine_with_model import RefineWithModel
from .replacements import register_replacements
from .save_caption import SaveCaption
from .sdxl_refiner import SDXLRefiner
from .text_to_filename import TextToFilename
from .wildcard_processor import WildcardProcessor


class ImageRefineryExtension(ComfyExtension):
    """The nodes, a route for the report of Check Setup, and what replaces nodes of other packs."""

    async def on_load(self) -> None:
        """Register the replacements: 0.3.64 does not call this, and cannot replace nodes."""
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_report_route()  # not in on_load, which 0.3.64 does not call
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
            CheckSetup,
            CaptionFolder,
            RefineFolder,
            DescribeTiles,
            RefineWithModel,
            *([RefineSplat] if hasattr(io, "Splat") else []),  # ComfyUI 0.23 and newer
        ]
