"""Tiny models with random weights, in ComfyUI's own classes: "sdxl", "qwen" and "cell16".

sdxl is core's SDXL with a UNet of 64 channels. qwen is core's Qwen-Image with one layer, whose
latents have five dimensions. cell16 is the sdxl with a VAE of 16 px a latent. The VAEs are core's
class around one layer each way; the CLIP turns each text into numbers of its own. /tiny/seen tells
which texts were encoded, what the model was called with, and what a ControlNet was shown.
"""

# ruff: noqa: N802 (the names of ComfyUI's own interface)

import hashlib
import json
import time

import comfy.controlnet
import comfy.ldm.qwen_image.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import comfy.utils
import torch
from aiohttp import web
from server import PromptServer

SEEN = {"texts": [], "calls": [], "hints": [], "loads": 0}
WIDTHS = {"sdxl": 64, "cell16": 64, "qwen": 32}
SLOW = {"seconds": 0.0}

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": WIDTHS["sdxl"],
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "dtype": torch.float32,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTHS["qwen"],
    "axes_dims_rope": (8, 12, 12),
    "dtype": torch.float32,
}


@PromptServer.instance.routes.get("/tiny/seen")
async def tiny_seen(request):
    """Everything since /tiny/forget."""
    return web.json_response(SEEN)


@PromptServer.instance.routes.post("/tiny/forget")
async def tiny_forget(request):
    """Begin with an empty record; the body's "seconds" are what each call of a model takes more."""
    SEEN.update(texts=[], calls=[], hints=[], loads=0)
    SLOW["seconds"] = (await request.json() or {}).get("seconds", 0.0)
    return web.json_response({})


def _randomize(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = (noise * scale + (parameter.ndim == 1)).float()


def _record_call(apply_model, arguments):
    time.sleep(SLOW["seconds"])
    given = arguments["c"]
    SEEN["calls"].append(
        {
            "size": list(arguments["input"].shape[-2:]),
            "texts": given["c_crossattn"][:, 0, 0].tolist(),
        }
    )
    return apply_model(arguments["input"], arguments["timestep"], **given)


def _model(kind):
    make = comfy.supported_models.QwenImage if kind == "qwen" else comfy.supported_models.SDXL
    config = make(QWEN if kind == "qwen" else UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    _randomize(model.diffusion_model, 1)
    return _patcher(model)


def _patcher(model):
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(
        model, management.get_torch_device(), management.unet_offload_device()
    )


class TinyClip:
    """What CLIPTextEncode needs of a CLIP. The first number of an encoded text is its own."""

    def __init__(self, width):
        self.width = width

    def tokenize(self, text, **_):
        SEEN["texts"].append(text)
        pieces = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        plain = [(comfy.sd1_clip.unescape_important(piece), weight) for piece, weight in pieces]
        return {"l": [plain or [("", 1.0)]]}

    def encode_from_tokens_scheduled(self, tokens, **_):
        (row,) = tokens["l"]
        words = torch.stack([self._vector(text) * weight for text, weight in row])[None]
        pooled = self._vector("".join(text for text, _ in row), 1280)[None]
        return [[words, {"pooled_output": pooled}]]

    def _vector(self, text, width=0):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        vector = torch.randn(width or self.width, generator=torch.Generator().manual_seed(seed))
        vector[0] = number_of(text)
        return vector


def number_of(text):
    """A number from 0 to 1 that tells texts apart."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24


class TinyCoder(torch.nn.Module):
    """Encodes by one convolution as large as a cell, and decodes by another."""

    def __init__(self, cell, channels, frames):
        super().__init__()
        self.frames = frames
        ops = comfy.ops.disable_weight_init
        self.down = ops.Conv2d(3, channels, cell, stride=cell)
        self.up = ops.Conv2d(channels, 3 * cell * cell, 1)
        self.cell = cell
        _randomize(self, 2)

    def encode(self, pixels):
        flat = self.down(pixels[:, :, 0] if self.frames else pixels)
        return flat[:, :, None] if self.frames else flat

    def decode(self, latents, **_):
        flat = latents[:, :, 0] if self.frames else latents
        pixels = torch.nn.functional.pixel_shuffle(self.up(flat), self.cell)
        return pixels[:, :, None] if self.frames else pixels


def _vae(kind):
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD().state_dict())
    cell = 16 if kind == "cell16" else 8
    if kind == "qwen":
        vae.latent_dim, vae.latent_channels = 3, 16
        vae.downscale_ratio = (lambda frames: (frames + 3) // 4, 8, 8)
        vae.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
    else:
        vae.downscale_ratio = vae.upscale_ratio = cell
    vae.vae_dtype = torch.float32
    vae.first_stage_model = TinyCoder(cell, vae.latent_channels, kind == "qwen").eval()
    vae.patcher = _patcher(vae.first_stage_model)
    return vae


class TinyModel:
    """MODEL, CLIP and VAE of a kind; the same every time."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(WIDTHS), {}), "salt": ("INT", {"default": 0})}}

    def load(self, kind, salt):
        SEEN["loads"] += 1
        model = _model(kind)
        model.set_model_unet_function_wrapper(_record_call)
        return model, TinyClip(WIDTHS[kind]), _vae(kind)


class _MeanOfHint(comfy.controlnet.ControlBase):
    """Adds to the middle of the UNet what its image shows on average."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        side = [length * 8 for length in x_noisy.shape[-2:]]
        if self.cond_hint is None:
            self.cond_hint = comfy.utils.common_upscale(
                self.cond_hint_original, side[1], side[0], "nearest-exact", "center"
            )
        SEEN["hints"].append([round(float(one), 3) for one in self.cond_hint[0].mean((1, 2))])
        return {"input": [], "middle": [self.cond_hint[:1].mean()[None, None]], "output": []}

    def copy(self):
        made = _MeanOfHint()
        self.copy_to(made)
        return made

    def get_models(self):
        return []


class TinyControl:
    """A CONTROL_NET for core's Apply ControlNet."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return (_MeanOfHint(),)


class TinyEqual:
    """Says whether two images are equal, and how far apart."""

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
            {"shape": list(a.shape), "equal": torch.equal(a, b), "most": float((a - b).abs().max())}
            if a.shape == b.shape
            else {"shape": list(a.shape), "other": list(b.shape)}
            for a, b in zip(first, second, strict=True)
        ]
        return {"ui": {"text": [json.dumps(rows)]}}


class TinySplats:
    """Joins two splats to a batch, the shorter one padded: no core node does."""

    CATEGORY = "tests"
    FUNCTION = "join"
    RETURN_TYPES = ("SPLAT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("SPLAT",), "second": ("SPLAT",)}}

    def join(self, first, second):
        counts = [one.positions.shape[1] for one in (first, second)]
        names = ("positions", "scales", "rotations", "opacities", "sh")
        parts = []
        for name in names:
            both = [getattr(one, name)[0] for one in (first, second)]
            parts.append(torch.nn.utils.rnn.pad_sequence(both, batch_first=True))
        return (type(first)(*parts, torch.tensor(counts)),)


NODE_CLASS_MAPPINGS = {
    "TinyModel": TinyModel,
    "TinyControl": TinyControl,
    "TinyEqual": TinyEqual,
    "TinySplats": TinySplats,
}
