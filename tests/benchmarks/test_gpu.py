"""benchmarks/gpu.py: end to end with the tiny refiner, and what it claims of the true one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from image_refinery.refine import read_checkpoint
from image_refinery.refine.loading import shipped_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The benchmark, imported as its own folder's modules import one another."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("gpu")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true refiner's JSON as a folder."""
    folder = tmp_path_factory.mktemp("description")
    for name, content in shipped_config("refiner").items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


# The benchmark with its workers in its own process: three fewer imports of torch and diffusers.
IN_ONE_PROCESS = f"""
import contextlib, io, json, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu

def in_this_process(script, arguments, **_):
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert gpu.main() == 0
    finally:
        sys.argv = before
    return json.loads(told.getvalue().splitlines()[-1])

gpu.run_worker = in_this_process
sys.exit(gpu.main())
"""


def run(program: list[str], result: Path, *arguments: str, **environment: str) -> tuple[str, dict]:
    """Run the benchmark; what it prints, and its JSON."""
    command = [sys.executable, *program, "--json", str(result), *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(result.read_text("utf-8"))


@pytest.mark.slow
def test_every_way_is_a_row_and_says_what_was_not_measured(tmp_path: Path) -> None:
    # Three warm runs: the machine may pause in one.
    small = ("--size", "tiny", "--side", "64", "--steps", "7", "--runs", "3")
    modes = "low_vram,plain,model_offload,comfyui"
    words = (*small, "--modes", modes)
    program = ["-c", IN_ONE_PROCESS]
    told, result = run(program, tmp_path / "gpu.json", *words, CUDA_VISIBLE_DEVICES="")

    assert [row["way"] for row in result["rows"]] == modes.split(",")
    for row in result["rows"][:2]:
        assert row["evaluations"] == 2
        assert row["cold_s"] > row["warm_s"] > 0
        assert 0 < row["share"] == row["floor_s"] / row["warm_s"] < 1.5
        assert row["peak_vram_bytes"] is None
        assert row["own_ram_bytes"] is None or row["own_ram_bytes"] > 10**8
    assert all(row["reason"].startswith("not measured: ") for row in result["rows"][2:])
    assert "TINY REFINER" in told
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    assert [line.count("not measured") for line in lines] == [0, 0, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_way_that_fails_is_a_row_with_the_reason(gpu: ModuleType, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.safetensors")
    worker = ["--worker", "gpu", "--checkpoint", missing, "--side", "64"]

    row = {"way": "gpu", **gpu.run_worker(gpu.__file__, worker)}

    assert "There is no checkpoint" in row["reason"]
    assert "There is no checkpoint" in gpu.row_cells(row)[-1]


def test_words_instead_of_a_result_are_a_reason(gpu: ModuleType, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("print('half a line')\n", "utf-8")

    assert "half a line" in gpu.run_worker(str(worker), [])["reason"]


def test_comfyui_is_looked_for_where_the_others_look(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = gpu.from_tests("comfyui/host.py")
    found = host.FoundHost(tmp_path / "ComfyUI", tmp_path / "python", (1, 0))
    monkeypatch.setenv("COMFYUI_PATH", "")
    monkeypatch.setattr(host, "find_host", lambda: found)

    assert gpu.python_for("comfyui", cuda=True, full=True) == found.python
    assert os.environ["COMFYUI_PATH"] == str(found.home), "its worker imports from there"
    monkeypatch.setattr(host, "find_host", lambda: "no ComfyUI there")
    assert gpu.python_for("comfyui", cuda=True, full=True) == "not measured: no ComfyUI there"


@pytest.mark.slow
def test_the_true_size_is_the_published_one(gpu: ModuleType, description: Path) -> None:
    shapes = gpu.checkpoint_shapes(description)
    work = gpu.count_work(description, 1024, 6)

    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 3_037_840_363
    assert work["bytes"]["unet"] == 2 * 2_259_526_660
    # Computed elsewhere in another way: 14.57 TFLOP a step, 15.35 for the VAE, 0.1 a prompt.
    assert work["flop"] == pytest.approx(6 * 14.57e12 + 15.35e12 + 2 * 0.098e12, rel=1e-3)
    # Likewise 22.5 GB a step and 37.6 for the VAE, but with copies after attention.
    assert work["traffic_bytes"] == pytest.approx(173e9, rel=0.06)


def test_the_names_are_those_of_a_refiner_checkpoint(
    gpu: ModuleType, description: Path, tmp_path: Path
) -> None:
    """With one element each: the header is what the checkpoint is told by."""
    from safetensors.torch import save_file

    file = tmp_path / "random.safetensors"
    names = gpu.checkpoint_shapes(description)
    save_file({name: torch.zeros(1, 4, 1, dtype=torch.float16) for name in names}, file)

    assert read_checkpoint(file).family == "refiner"


@pytest.mark.parametrize(("name", "middle"), [("norm.weight", 1.0), ("norm.bias", 0.0)])
def test_no_two_biases_or_scales_are_equal(gpu: ModuleType, name: str, middle: float) -> None:
    """Ones and zeros would hide that two of them are swapped."""
    first, second = (gpu.random_weights(name, (64,)) for _ in range(2))
    assert not torch.equal(first, second)
    assert 0.001 < float(first.float().std()) < 0.2 > abs(float(first.float().mean()) - middle)


def test_the_floor_adds_traffic_to_flop_and_copies_run_beside_them(gpu: ModuleType) -> None:
    work = {"flop": 100, "traffic_bytes": 30, "bytes": {"unet": 80, "vae": 10, "text": 10}}
    rates = {"flop_per_s": 50, "bytes_per_s": 10, "pinned_bytes_per_s": 10}
    assert gpu.floor_s("gpu", work, rates, 6) == 2 + 3
    assert gpu.floor_s("offload", work, rates, 6) == 10
    assert gpu.floor_s("offload", work, rates | {"pinned_bytes_per_s": None}, 6) == 2 + 3


def test_bytes_that_each_mode_brings(gpu: ModuleType) -> None:
    sizes = {"unet": 4 * 2**30, "vae": 10, "text": 100}
    resident = 3 * 2**29

    assert gpu.moved_bytes("gpu", sizes, 6) == gpu.moved_bytes("plain", sizes, 6) == 0
    assert gpu.moved_bytes("offload", sizes, 6) == 4 * 2**30 + 110
    assert gpu.moved_bytes("low_vram", sizes, 6) == 110 + resident + 6 * (4 * 2**30 - resident)


@pytest.mark.gpu
def test_a_gpu_measures_the_true_size(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    small = ("--side", "512", "--runs", "1", "--modes", "gpu,low_vram,plain,model_offload")
    told, result = run([str(BENCHMARKS / "gpu.py")], tmp_path / "gpu.json", *small)

    assert "TINY" not in told
    peaks = {row["way"]: row["peak_vram_bytes"] for row in result["rows"]}
    assert peaks["gpu"] > 5 * 2**30 > peaks["low_vram"] > 2**30
    assert peaks["plain"] > peaks["model_offload"] > 4 * 2**30
