"""The docs' Python runs as it is written, with a stand-in for the 3D pipeline.

The specification's snippet is on one of the pages, letter for letter.
"""

import inspect
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import image_refinery.refine
import pytest
import torch
from faulty_ollama import FaultyOllama
from image_refinery.refine import ImageRefiner
from image_refinery.refine.splats import Splat, splat_refiner, write_ply
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAMPLES = {
    f"{page.stem}-{number}": code
    for page in sorted(DOCS.rglob("*.md"))
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL), 1
    )
}


def snippet() -> str:
    """TRELLIS-BOX's example."""
    [code] = [code for code in SAMPLES.values() if "library.image_refiner" in code]
    return code


class StandInPipeline:
    """Takes what TRELLIS takes, and keeps what it was given."""

    @classmethod
    def from_pretrained(cls, name: str) -> "StandInPipeline":
        assert name in ("JeffreyXiang/TRELLIS-image-large", "microsoft/TRELLIS-image-large")
        return cls()

    def __getattr__(self, name: str) -> object:
        # The snippet moves its pipeline to the GPU; there may be none here.
        return (lambda: self) if name == "cuda" else super().__getattribute__(name)

    def run(self, image: Image.Image, seed: int) -> dict[str, object]:
        return {"image": image.copy(), "seed": seed}


@pytest.fixture
def in_a_folder(tiny_file: Path, draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds the samples' images; the refiner is the tiny one."""
    draw(0, (150, 150)).convert("RGBA").save(tmp_path / "input.png")
    draw(1, (160, 120)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", str(tiny_file))
    trellis = ModuleType("trellis.pipelines")
    trellis.TrellisImageTo3DPipeline = StandInPipeline
    monkeypatch.setitem(sys.modules, "trellis", ModuleType("trellis"))
    monkeypatch.setitem(sys.modules, "trellis.pipelines", trellis)
    monkeypatch.setitem(sys.modules, "library", ModuleType("library"))
    monkeypatch.setitem(sys.modules, "library.image_refiner", image_refinery.refine)


@pytest.mark.filterwarnings("ignore:.*no CUDA device:RuntimeWarning")
@pytest.mark.usefixtures("sixteenth_megapixel", "in_a_folder")
@pytest.mark.parametrize("sample", [name for name in SAMPLES if SAMPLES[name] != snippet()])
def test_a_sample_runs(
    sample: str,
    ollama: FaultyOllama,
    draw_splat: Callable[..., Splat],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    script = tmp_path / "sample.py"
    script.write_text(SAMPLES[sample], "utf-8")
    if "chair.ply" in SAMPLES[sample]:
        write_ply(draw_splat(200), "chair.ply")
        cameras = splat_refiner.even_sphere
        monkeypatch.setattr(
            splat_refiner, "even_sphere", lambda around, *_: cameras(around, count=2, size=96)
        )
    names = runpy.run_path(str(script))
    assert not names.get("failed")
    if "OllamaClient" in SAMPLES[sample]:
        assert any(request.path == "/api/chat" for request in ollama.requests)


@pytest.mark.usefixtures("sixteenth_megapixel", "in_a_folder")
def test_the_snippet_runs(tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(snippet(), "utf-8")
    if torch.cuda.is_available():
        names = runpy.run_path(str(script))
    else:
        with pytest.warns(RuntimeWarning, match="no CUDA device") as caught:
            names = runpy.run_path(str(script))
        assert [w.category for w in caught].count(RuntimeWarning) == 1
    outputs = names["outputs"]
    assert outputs["seed"] == 1
    assert (outputs["image"].size, outputs["image"].mode) == ((150, 150), "RGBA")
    refiner = names["refiner"]
    assert isinstance(refiner, ImageRefiner)
    assert refiner.unload() == 0, "nothing is left to free"
    # A second refinement after unload works.
    assert refiner.refine(names["image"], strength=0.1, num_inference_steps=10).size == (150, 150)


def test_importing_the_package_imports_neither_diffusers_nor_transformers() -> None:
    import subprocess

    root = Path(__file__).resolve().parents[2]
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "pack", {str(root / "__init__.py")!r}, submodule_search_locations=[{str(root)!r}])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
from pack.refine import ImageRefiner, RefineSettings, read_checkpoint
heavy = {{"diffusers", "transformers", "huggingface_hub", "requests"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_refiner_is_called_as_the_page_says() -> None:
    """Its positional parameters and their defaults; the rest is by keyword."""
    made = inspect.signature(ImageRefiner)
    called = inspect.signature(ImageRefiner.refine)

    def positional(signature: inspect.Signature) -> dict[str, object]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return {n: p.default for n, p in signature.parameters.items() if p.kind is kind}

    assert positional(made) == {"device": "cuda", "use_fp16": True}
    first, *settings = positional(called).items()
    assert first[0] == "self"
    assert settings[1:] == [("strength", 0.3), ("guidance_scale", 7.5), ("num_inference_steps", 20)]


def test_a_keyword_that_is_no_setting_is_named(tiny_file: Path) -> None:
    refiner = ImageRefiner("cpu", model=tiny_file)
    with pytest.raises(TypeError, match=r"negativ_prompt is not a setting\. The settings are "):
        refiner.refine(Image.new("RGB", (8, 8)), negativ_prompt="blurry")


def test_every_public_name_is_there() -> None:
    for name in image_refinery.refine.__all__:
        assert getattr(image_refinery.refine, name) is not None
