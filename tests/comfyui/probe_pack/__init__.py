"""Nodes that only the tests put into ComfyUI: what core has no node for.

ProbePictures makes lists and batches; ProbeSame compares objects by identity; ProbeModel does what
a sampler does to the model manager; ProbeSleep waits without blocking the executor; /probe/calls
tells when models were unloaded. Times are time.monotonic(), which the test shares.
"""

# ruff: noqa: N802 (the names of ComfyUI's own interface)

import asyncio
import json
import time

import comfy.model_management
import comfy.model_patcher
import torch
from aiohttp import web
from server import PromptServer

CALLS = []


def _record(name, **more):
    CALLS.append({"at": time.monotonic(), "name": name, **more})


def _watch_unloading():
    original = comfy.model_management.unload_all_models

    def unload_all_models(*args, **kwargs):
        _record("unload_all_models", loaded=len(comfy.model_management.current_loaded_models))
        return original(*args, **kwargs)

    comfy.model_management.unload_all_models = unload_all_models


_watch_unloading()


@PromptServer.instance.routes.get("/probe/calls")
async def probe_calls(request):
    """Everything recorded so far."""
    return web.json_response(CALLS)


@PromptServer.instance.routes.post("/probe/forget")
async def probe_forget(request):
    """Begin with an empty record."""
    CALLS.clear()
    return web.json_response([])


def _picture(width, height, colour):
    return torch.tensor(colour, dtype=torch.float32).expand(1, height, width, len(colour)).clone()


class ProbePictures:
    """One-colour pictures from JSON: [[width, height, [r, g, b]], ...], as a list or a batch."""

    CATEGORY = "tests"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"pictures": ("STRING", {}), "batch": ("BOOLEAN", {"default": False})},
            "optional": {"salt": ("INT", {"default": 0})},
        }

    def make(self, pictures, batch, salt=0):
        made = [_picture(*one) for one in json.loads(pictures)]
        return ([torch.cat(made)] if batch else made,)


class ProbeSame:
    """Says for every pair whether it is the same tensor object, and both shapes."""

    CATEGORY = "tests"
    FUNCTION = "compare"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("IMAGE", {}), "second": ("IMAGE", {})}}

    def compare(self, first, second):
        rows = [
            {
                "same": a is b,
                "shares_memory": a.data_ptr() == b.data_ptr(),
                "equal": a.shape == b.shape and bool(torch.equal(a, b)),
                "first": list(a.shape),
                "second": list(b.shape),
            }
            for a, b in zip(first, second, strict=False)
        ]
        counts = {"first": len(first), "second": len(second)}
        return {"ui": {"text": [json.dumps({"rows": rows, "counts": counts})]}}


class ProbeModel:
    """Puts a small model on the device through the model manager, and takes `seconds` over it."""

    CATEGORY = "tests"
    FUNCTION = "sample"
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"seconds": ("FLOAT", {"default": 0.2}), "salt": ("INT", {"default": 0})},
            "optional": {"after": ("*", {})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def sample(self, seconds, salt, after=None):
        management = comfy.model_management
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.zeros(256, 256))
        patcher = comfy.model_patcher.ModelPatcher(
            model, management.get_torch_device(), torch.device("cpu")
        )
        _record("model_begins", salt=salt)
        management.load_models_gpu([patcher])
        time.sleep(seconds)
        _record("model_ends", salt=salt)
        return (f"sampled {salt}",)


class ProbeSleep:
    """Waits as a node that talks to a cloud service does: other nodes run meanwhile."""

    CATEGORY = "tests"
    FUNCTION = "sleep"
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"seconds": ("FLOAT", {"default": 0.2}), "salt": ("INT", {"default": 0})}
        }

    async def sleep(self, seconds, salt):
        _record("sleep_begins", salt=salt)
        await asyncio.sleep(seconds)
        _record("sleep_ends", salt=salt)
        return (f"slept {salt}",)


NODE_CLASS_MAPPINGS = {
    "ProbePictures": ProbePictures,
    "ProbeSame": ProbeSame,
    "ProbeModel": ProbeModel,
    "ProbeSleep": ProbeSleep,
}
