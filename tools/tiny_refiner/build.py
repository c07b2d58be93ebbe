"""Join the trained parts to the tiny refiner, as a single file and, if asked, as a folder.

    python tools/tiny_refiner/build.py WORK                     # weights/tiny_refiner.safetensors
    python tools/tiny_refiner/build.py WORK --folder FOLDER     # and a diffusers folder

WORK is where train.py left vae.safetensors and unet.safetensors; parts that are not there keep
their seeded random weights, as the text encoder always does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file
from tiny_export import save_checkpoint, save_folder
from tiny_model import build_pipeline

SEED = 20261121
TARGET = Path(__file__).resolve().parent / "weights" / "tiny_refiner.safetensors"


def main() -> None:
    """Build what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--folder", type=Path, help="also write a diffusers folder here")
    arguments = parser.parse_args()
    pipeline = build_pipeline(SEED, arguments.work / "tokenizer")
    for name in ("vae", "unet"):
        trained = arguments.work / f"{name}.safetensors"
        if trained.is_file():
            getattr(pipeline, name).load_state_dict(load_file(trained))
    save_checkpoint(pipeline, arguments.target)
    if arguments.folder is not None:
        save_folder(pipeline, arguments.folder)


if __name__ == "__main__":
    main()
