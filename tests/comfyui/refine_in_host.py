"""Print, as JSON, how the refiner behaves over ComfyUI's real model manager, without a server.

    python refine_in_host.py ROOT PACK CHECKPOINT --cpu

ROOT is ComfyUI's folder, which goes on sys.path. A computer without a GPU never loads partially,
so one scenario tells the manager that its CPU is no CPU and that there is no VRAM.
Answer: RESULT and a JSON object.
"""

import gc
import importlib
import importlib.util
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

root, pack, checkpoint = (Path(sys.argv.pop(1)) for _ in range(3))
sys.path[0] = str(root)  # instead of this script's folder
importlib.import_module("comfy.options").enable_args_parsing()
importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
management = importlib.import_module("comfy.model_management")
torch = importlib.import_module("torch")
torch.set_num_threads(1)

spec = importlib.util.spec_from_file_location(
    "pack", pack / "__init__.py", submodule_search_locations=[str(pack)]
)
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
refine = importlib.import_module("pack.refine")
managed = importlib.import_module("pack.nodes.host.managed")
kept = importlib.import_module("pack.nodes.host.kept")
stages = importlib.import_module("pack.refine.stages")

SETTINGS = refine.RefineSettings(prompt="a red circle", seed=3, working_size="keep size")
PICTURE = torch.rand(1, 64, 128, 3, generator=torch.Generator().manual_seed(1))


def make(mode):
    """A refiner as the node makes it, loaded outside inference mode."""
    refiner = refine.ImageRefiner(
        "cpu",
        model=checkpoint,
        memory_mode=mode,
        residency=lambda parts, device: managed.ManagedResidency(parts, device, mode),
    )
    refiner.load()
    return refiner


def run(refiner):
    """One picture as ComfyUI runs its nodes: under inference mode."""
    with torch.inference_mode():
        return refiner.refine_batch([PICTURE], SETTINGS)[0].clone()


def difference(refiner):
    """How far the result is from the stand-alone refiner's."""
    return float((run(refiner) - EXPECTED).abs().max())


def loaded():
    """Names of the models in ComfyUI's list."""
    return sorted(type(one.model.model).__name__ for one in management.current_loaded_models)


def modes():
    """Each memory mode: how far from the stand-alone result, and what stays loaded."""
    answer = {}
    for mode in ("auto", "gpu", "offload", "low_vram"):
        refiner = make(mode)
        answer[mode] = {"difference": difference(refiner), "loaded": loaded()}
        refiner.unload()
        answer[mode]["after"] = loaded()
    return answer


def no_vram():
    """With a budget of nothing, and the weights of every layer where they rest."""
    was = management.vram_state, management.is_device_cpu
    management.vram_state = management.VRAMState.NO_VRAM
    management.is_device_cpu = lambda device: False
    try:
        refiner = make("auto")
        far = difference(refiner)
        sizes = [one.model.loaded_size() for one in management.current_loaded_models]
        whole = [one.model.model_size() for one in management.current_loaded_models]
        return {"difference": far, "loaded_bytes": sum(sizes), "all_bytes": sum(whole)}
    finally:
        management.unload_all_models()
        management.vram_state, management.is_device_cpu = was


def low_vram():
    """As --lowvram on a GPU: the limit holds for what is loaded of each part."""
    was = management.vram_state, management.is_device_cpu, managed.LOW_VRAM_BYTES
    management.vram_state = management.VRAMState.LOW_VRAM
    management.is_device_cpu = lambda device: False
    managed.LOW_VRAM_BYTES = 2**20
    load, seen = managed.comfyui.load_patcher, []

    def load_and_look(patcher, working_bytes, *, whole):
        load(patcher, working_bytes, whole=whole)
        seen.append((patcher.loaded_size(), patcher.model_size()))

    managed.comfyui.load_patcher = load_and_look
    try:
        far = difference(make("low_vram"))
        most = max(loaded for loaded, _ in seen)
        return {"difference": far, "most_loaded": most, "largest": max(size for _, size in seen)}
    finally:
        managed.comfyui.load_patcher = load
        management.unload_all_models()
        management.vram_state, management.is_device_cpu, managed.LOW_VRAM_BYTES = was


class Driver:
    """Records what would be page-locked, in place of the CUDA runtime."""

    def __init__(self):
        self.ranges = []

    def cudaHostRegister(self, pointer, size, flags):  # noqa: N802 (as in CUDA)
        self.ranges.append((pointer, size))
        return 0

    def cudaHostUnregister(self, pointer):  # noqa: N802
        return 0


def pins():
    """With little VRAM: how many weights ComfyUI page-locks, of a core model and of ours."""
    driver, cudart = Driver(), torch.cuda.cudart
    was = getattr(management, "MAX_PINNED_MEMORY", None)  # none in releases that pin nothing
    torch.cuda.cudart = lambda: driver
    management.MAX_PINNED_MEMORY = 2**40

    def pinned_by(*loaded):
        before = len(driver.ranges)
        for one in loaded:
            one.partially_load(cpu, 0.1)
        return len(driver.ranges) - before

    cpu = torch.device("cpu")
    model = torch.nn.Sequential(importlib.import_module("comfy.ops").manual_cast.Linear(64, 64))
    model.device = model.manual_cast_dtype = None
    core = importlib.import_module("comfy.model_patcher").ModelPatcher(model, cpu, cpu)
    refiner = make("auto")
    ours = [part.patcher for part in refiner._stages.residency._components.values()]
    try:
        return {"can_pin": was is not None, "core": pinned_by(core), "ours": pinned_by(*ours)}
    finally:
        for one in (core, *ours):
            one.detach()
        torch.cuda.cudart = cudart
        management.MAX_PINNED_MEMORY = was


def types(*flags, half):
    """The types that the parts compute in with these flags; `half`: as on a GPU that has both."""
    was = management.should_use_fp16, management.should_use_bf16
    if half:
        management.should_use_fp16 = management.should_use_bf16 = lambda *_, **__: True
    for flag in flags:
        setattr(management.args, flag, True)
    try:
        chosen = managed.comfyui.compute_dtypes(torch.device("cpu"), 2_259_526_660)
        return [str(chosen[name])[6:] for name in ("unet", "vae", "text_encoder")]
    finally:
        management.should_use_fp16, management.should_use_bf16 = was
        for flag in flags:
            setattr(management.args, flag, False)


def flags():
    """ComfyUI's flags for types: what each chooses, a run with one, and the error that names it."""
    gpu = ("fp32_unet", "bf16_unet", "fp8_e4m3fn_unet", "fp32_vae", "fp16_vae", "fp32_text_enc")
    answer = {flag: types(flag, half=True) for flag in gpu}
    answer |= {"gpu": types(half=True), "cpu": types(half=False)}
    answer |= {f"cpu {flag}": types(flag, half=False) for flag in ("fp16_unet", "bf16_vae")}
    management.args.fp16_vae = True
    try:
        refiner = make("auto")
    finally:
        management.args.fp16_vae = False
    far = difference(refiner)
    decoder = refiner._stages.components.vae.decoder
    decoder.register_forward_hook(lambda _, __, out: out * float("nan"))
    try:
        run(refiner)
    except refine.NotFiniteError as error:
        return answer | {"difference": far, "message": str(error)}


def unload_models():
    """What the button does, outside inference mode; then it all works again."""
    refiner = make("auto")
    run(refiner)
    before = loaded()
    management.unload_all_models()
    after = loaded()
    return {"before": before, "after": after, "difference": difference(refiner)}


class Other(torch.nn.Module):
    """Somebody else's model."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(256, 256))


def neighbours():
    """Our release leaves another model where it is; ours make room when it is told to come."""
    patchers = importlib.import_module("comfy.model_patcher")
    cpu = torch.device("cpu")
    other = patchers.ModelPatcher(Other(), cpu, cpu)
    management.load_models_gpu([other])
    refiner = make("auto")
    run(refiner)
    both = loaded()
    refiner.unload()
    alone = loaded()
    run(refiner)
    management.free_memory(1e30, cpu, keep_loaded=[])
    answer = {"both": both, "alone": alone, "freed": loaded(), "difference": difference(refiner)}
    refiner.unload()
    return answer


def rests():
    """After a round trip to another type and back, every weight is the mapped one again."""
    refiner = make("auto")
    unet = refiner._stages.components.unet
    before = {name: weight.data_ptr() for name, weight in unet.named_parameters()}
    with torch.inference_mode():
        unet.to(torch.float64)
        moved = sum(w.data_ptr() != before[n] for n, w in unet.named_parameters())
        inference = sum(w.data.is_inference() for w in unet.parameters())
    unet.to(torch.float16)  # the type in which the file stores them
    back = sum(w.data_ptr() == before[n] for n, w in unet.named_parameters())
    return {"weights": len(before), "moved": moved, "inference": inference, "back": back}


def out_of_memory():
    """An error in the middle of the first step: the device is cleared, and the work goes on."""
    refiner = make("auto")
    parts = refiner._stages.components
    layer, failures = parts.unet.conv_out, []

    def fail(*_):
        if not failures:
            failures.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    handle = layer.register_forward_pre_hook(fail)
    far = difference(refiner)
    handle.remove()
    return {"failures": len(failures), "difference": far}


def owner():
    """Another key closes the first refiner; freeing leaves nothing alive."""
    first = kept.keep_refiner("a", lambda: make("auto"))
    run(first)
    again = kept.keep_refiner("a", lambda: make("auto"))
    watched = weakref.ref(first._stages.components.unet)
    same = first is again
    del first, again
    gc.collect()
    alive = watched() is not None
    second = kept.keep_refiner("b", lambda: make("auto"))
    gone = watched() is None
    run(second)
    del second
    kept.free_refiner()
    return {"same": same, "kept": alive, "closed": gone, "left": loaded()}


TEXTS = (
    *("", "a (red boat:1.3), at (dusk)", r"a cat \(asleep:1.3\) ((on)) a [mat]", "(a:0) (b:-0.5)"),
    *("a lighthouse, " * 40 + "(stormy:1.4) sea", "((open (x:.5) end", "x) (y)", "(:2)"),
)


def weights():
    """Prompts with weights: tokens, their weights and the embeddings, ours and ComfyUI's."""
    clip = importlib.import_module("comfy.sd1_clip")
    theirs = importlib.import_module("comfy.sdxl_clip").SDXLClipGTokenizer()
    parts = importlib.import_module("pack.refine.loading").load_components(checkpoint)
    prompts = importlib.import_module("pack.refine.prompts")
    small = parts.text_encoder_2.float()

    class Tokenizer:
        """CLIP's real vocabulary, which the tiny refiner lacks."""

        bos_token_id, eos_token_id, pad_token_id = 49406, 49407, 0

        def __call__(self, text, **_):
            return SimpleNamespace(input_ids=theirs.tokenizer(text)["input_ids"][1:-1])

    def encode(rows, **_):
        tokens = torch.as_tensor(rows) % small.config.vocab_size
        return small(tokens, output_hidden_states=True)

    class Encoder(clip.ClipTokenWeightEncoder):
        def __init__(self):
            self.special_tokens = {"start": 49406, "end": 49407, "pad": 0}

        def encode(self, rows):
            output = encode(rows)
            return output.hidden_states[-2], output[0]

    answer = []
    for text in TEXTS:
        tokens = theirs.tokenize_with_weights(text)
        rows, numbers = prompts.split_weighted(Tokenizer(), text)
        ours = [list(zip(*pair, strict=True)) for pair in zip(rows, numbers, strict=True)]
        with torch.no_grad():
            embeds, pooled = prompts._encode_weighted(
                [(Tokenizer(), encode)], text, torch.device("cpu")
            )
            expected, expected_pooled = Encoder().encode_token_weights(tokens)
        answer.append(
            {
                "same": ours == tokens,
                "embeds": float((embeds - expected).abs().max()),
                "pooled": float((pooled - expected_pooled).abs().max()),
                "weighted": any(number != 1 for row in numbers for number in row),
                "rows": len(rows),
            }
        )
    return answer


EXPECTED = refine.ImageRefiner("cpu", model=checkpoint).refine_batch([PICTURE], SETTINGS)[0]
SCENARIOS = (
    *(
        modes,
        no_vram,
        low_vram,
        pins,
        flags,
        unload_models,
        neighbours,
        rests,
        out_of_memory,
        owner,
        weights,
    ),
)
answers = {scenario.__name__: scenario() for scenario in SCENARIOS}
sys.stdout.write(f"RESULT{json.dumps(answers)}\n")
