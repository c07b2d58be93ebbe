"""The refiner over the real model manager: who holds which weights, in every memory mode."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from host import FoundHost

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY = ROOT / "tools" / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"
ALL_PARTS = ["RefinerTextEncoder2", "RefinerUnet", "RefinerVae"]


@pytest.fixture(scope="module")
def answers(found_comfyui: FoundHost) -> dict[str, Any]:
    """What refine_in_host.py says, in ComfyUI's own interpreter."""
    said = subprocess.run(
        [
            str(found_comfyui.python),
            str(HERE / "refine_in_host.py"),
            *(str(found_comfyui.home), str(ROOT), str(TINY), "--cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | {"PYTHONPATH": "", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"},
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, said.stderr
    return json.loads(lines[-1].removeprefix("RESULT"))


@pytest.mark.parametrize("mode", ["auto", "gpu", "offload", "low_vram"])
def test_every_memory_mode_gives_the_picture_of_the_refiner_outside_comfyui(
    answers: dict[str, Any], mode: str
) -> None:
    said = answers["modes"][mode]
    assert said["difference"] <= 1e-6
    assert said["loaded"] == (ALL_PARTS if mode in ("auto", "gpu") else [])
    assert said["after"] == []


def test_with_no_vram_nothing_is_loaded_and_the_picture_is_the_same(
    answers: dict[str, Any],
) -> None:
    said = answers["no_vram"]
    assert said["difference"] <= 1e-6
    assert said["loaded_bytes"] == 0 < said["all_bytes"]


def test_low_vram_keeps_to_its_limit_and_the_picture_is_the_same(answers: dict[str, Any]) -> None:
    said = answers["low_vram"]
    assert said["difference"] <= 1e-6
    assert 0 < said["most_loaded"] <= 2**20 < said["largest"]


def test_no_weight_of_the_mapped_file_is_page_locked(answers: dict[str, Any]) -> None:
    said = answers["pins"]
    assert (said["core"] > 0) == said["can_pin"], "a core model's weights reach the driver"
    assert said["ours"] == 0


@pytest.mark.parametrize(
    ("case", "types"),
    [
        ("gpu", "float16 bfloat16 float16"),
        ("fp32_unet", "float32 bfloat16 float16"),
        ("bf16_unet", "bfloat16 bfloat16 float16"),
        ("fp8_e4m3fn_unet", "float16 bfloat16 float16"),
        ("fp32_vae", "float16 float32 float16"),
        ("fp16_vae", "float16 float16 float16"),
        ("fp32_text_enc", "float16 bfloat16 float32"),
        ("cpu", "float32 float32 float32"),
        ("cpu fp16_unet", "float32 float32 float32"),
        ("cpu bf16_vae", "float32 bfloat16 float32"),
    ],
)
def test_comfyui_s_flags_choose_the_types_of_unet_vae_and_text_encoder(
    answers: dict[str, Any], case: str, types: str
) -> None:
    assert answers["flags"][case] == types.split()


def test_a_flag_is_obeyed_and_the_error_names_it(answers: dict[str, Any]) -> None:
    said = answers["flags"]
    assert 0 < said["difference"] < 0.05
    assert said["message"].endswith(
        "produced NaN or infinity in float16, which would be a black image: start ComfyUI with "
        "--fp32-vae instead of --fp16-vae, or download the checkpoint again."
    )


def test_unload_models_takes_all_parts_and_the_next_run_works(answers: dict[str, Any]) -> None:
    said = answers["unload_models"]
    assert said["before"] == ALL_PARTS
    assert said["after"] == []
    assert said["difference"] <= 1e-6


def test_other_models_are_left_alone_and_ours_make_room(answers: dict[str, Any]) -> None:
    said = answers["neighbours"]
    assert said["both"] == sorted([*ALL_PARTS, "Other"])
    assert said["alone"] == ["Other"]
    assert said["freed"] == []
    assert said["difference"] <= 1e-6


def test_weights_that_leave_the_device_are_the_mapped_ones_again(answers: dict[str, Any]) -> None:
    said = answers["rests"]
    assert said["weights"] > 100
    assert said["moved"] == said["back"] == said["weights"]
    assert said["inference"] == 0, "a tensor of inference mode could not be moved outside it"


def test_out_of_memory_goes_on_with_less(answers: dict[str, Any]) -> None:
    said = answers["out_of_memory"]
    assert said["failures"] == 1
    assert said["difference"] <= 1e-6


def test_one_owner_keeps_the_weights_until_another_checkpoint_comes(
    answers: dict[str, Any],
) -> None:
    assert answers["owner"] == {"same": True, "kept": True, "closed": True, "left": []}


def test_prompts_with_weights_are_those_of_comfyui(answers: dict[str, Any]) -> None:
    said = answers["weights"]
    assert [one["same"] for one in said] == [True] * 8
    assert max(max(one["embeds"], one["pooled"]) for one in said) < 1e-4
    assert [one["weighted"] for one in said].count(True) == 5 and max(o["rows"] for o in said) > 1
