"""Hold tests/comfy_stub against the ComfyUI that was found: no name or parameter of our own."""

import ast
import json
import subprocess
from pathlib import Path

import pytest
from host import FoundHost, clean_environment

STUB = Path(__file__).resolve().parents[1] / "comfy_stub"

DESCRIBE = Path(__file__).resolve().parent / "describe_api.py"

IO = "comfy_api.latest:io."
TYPES = (
    "Boolean",
    "Int",
    "Float",
    "String",
    "Combo",
    "MultiType",
    "Image",
    "Mask",
    "AnyType",
    "UpscaleModel",
    "Model",
    "Clip",
    "Vae",
    "Conditioning",
)
LEAVES = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
WANTED = [
    *(f"{IO}{kind}.Input.__init__" for kind in TYPES),
    *(f"{IO}{kind}.Output.__init__" for kind in ("Boolean", "Int", "Image", "Mask", "AnyType")),
    *(f"{IO}{kind}.Output.__init__" for kind in ("String", "Latent", "Model")),
    *(f"{IO}{name}" for name in ("Custom", "Schema", "HiddenHolder", "NodeOutput")),
    *(f"{IO}Schema.{name}" for name in ("validate", "finalize")),
    *(f"{IO}ComfyNode.{name}" for name in ("define_schema", "execute", "check_lazy_status")),
    *(f"{IO}ComfyNode.{name}" for name in ("GET_SCHEMA", "INPUT_TYPES")),
    *(f"{IO}Hidden.{name}" for name in ("unique_id", "prompt", "extra_pnginfo", "dynprompt")),
    *(f"{IO}NumberDisplay.{name}" for name in ("number", "slider")),
    "comfy_api.latest:ui.PreviewText",
    "comfy_api.latest:ComfyExtension.get_node_list",
    "comfy_api.latest:ComfyExtension.on_load",
    "comfy.model_management:InterruptProcessingException",
    "comfy.model_management:interrupt_current_processing",
    "comfy.model_management:processing_interrupted",
    "comfy.model_management:throw_exception_if_processing_interrupted",
    "comfy.model_management:unload_all_models",
    "comfy.model_management:soft_empty_cache",
    "comfy.model_management:get_torch_device",
    "comfy.model_management:get_torch_device_name",
    "comfy.model_management:intermediate_device",
    "comfy.model_management:get_free_memory",
    "comfy.model_management:get_total_memory",
    "comfy.model_management:loaded_models",
    "comfy.model_management:LoadedModel.model",
    "comfy.model_management:LoadedModel.model_unload",
    "comfy.model_management:current_loaded_models",
    "comfy.model_management:load_models_gpu",
    "comfy.model_management:is_device_cpu",
    "comfy.model_management:should_use_fp16",
    *(f"comfy.model_management:{part}_dtype" for part in ("unet", "vae", "text_encoder")),
    "comfy.model_management:unet_manual_cast",
    *(f"comfy.model_patcher:ModelPatcher.{name}" for name in ("__init__", "model_size", "detach")),
    *(f"comfy.model_patcher:ModelPatcher.{name}" for name in ("loaded_size", "partially_load")),
    *(f"comfy.ops:manual_cast.{name}.forward_comfy_cast_weights" for name in LEAVES),
    "comfy.sample:prepare_noise",
    "comfy.sample:fix_empty_latent_channels",
    "comfy.sample:sample",
    "comfy.samplers:KSampler.SAMPLERS",
    "comfy.samplers:KSampler.SCHEDULERS",
    *(f"comfy.latent_formats:{name}" for name in ("LatentFormat", "SD15", "SDXL", "Wan21")),
    "comfy.utils:PROGRESS_BAR_ENABLED",
    "comfy.utils:set_progress_bar_global_hook",
    "comfy.utils:ProgressBar.__init__",
    "comfy.utils:ProgressBar.update_absolute",
    "comfy.utils:ProgressBar.update",
    "comfy_execution.utils:get_executing_context",
    "comfy_execution.utils:CurrentNodeContext.__init__",
    "comfy_execution.utils:ExecutionContext",
    "server:PromptServer.send_progress_text",
    "server:PromptServer.send_sync",
    "folder_paths:get_input_directory",
    "folder_paths:get_output_directory",
    "folder_paths:get_temp_directory",
    "folder_paths:get_user_directory",
    "folder_paths:get_filename_list",
    "folder_paths:get_full_path",
    "folder_paths:base_path",
    "folder_paths:models_dir",
    "folder_paths:folder_names_and_paths",
    "nodes:before_node_execution",
    "nodes:interrupt_processing",
]


# "no inputs" was None in 0.3.64 and became a new list later
SAME_MEANING = {"<factory>": "None"}

Described = dict[str, list[list[str | None]] | str | None]


def _describe(found: FoundHost, root: Path) -> Described:
    said = subprocess.run(
        [str(found.python), str(DESCRIBE), str(root), "--cpu"],
        input=json.dumps(WANTED),
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=clean_environment(),
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, said.stderr
    return json.loads(lines[-1].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def both(found_comfyui: FoundHost):
    """What the stub and the real ComfyUI say of themselves."""
    return _describe(found_comfyui, STUB), _describe(found_comfyui, found_comfyui.home)


@pytest.mark.parametrize("name", WANTED)
def test_the_stub_promises_no_more_than_the_host_keeps(both, name: str):
    stub, real = both[0][name], both[1][name]
    assert stub is not None, f"the stub has no {name}"
    assert real is not None, f"this ComfyUI has no {name}"
    if isinstance(stub, str) or isinstance(real, str):
        assert stub == real
        return
    kept = dict(real)
    for parameter, default in stub:
        assert parameter in kept, f"{name} of this ComfyUI takes no {parameter}"
        assert SAME_MEANING.get(default, default) == SAME_MEANING.get(
            kept[parameter], kept[parameter]
        )


# reached through the types above, or the stub's own
EXEMPT = {"Input", "WidgetInput", "Output", "as_dict", "get_io_type", "io_type", "from_dict"}
EXEMPT |= {"forward"}  # torch's own; ComfyUI's takes whatever comes
EXEMPT |= {"Splat"}  # newer than 0.3.64
EXEMPT |= {"result", "stub_clone", "installed", "real_comfy_is_importable"}


def _public_names(file: Path) -> set[str]:
    """Names of the functions and classes that a file defines, but for private ones."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {one.name for one in ast.walk(tree) if isinstance(one, kinds) and one.name[0] != "_"}


def test_everything_public_in_the_stub_is_compared():
    """A name added to the stub must be added to WANTED."""
    compared = {part for name in WANTED for part in name.split(":")[1].split(".")}
    defined = set().union(*(_public_names(file) for file in STUB.rglob("*.py")))
    assert len(defined) > 30
    assert defined - compared - EXEMPT == set()
