"""The command line: image-refinery describe | refine | models | doctor | demo.

Results go to stdout, progress and problems to stderr. Exit codes: 0 all went well; 1 something
failed, and stderr says what; 2 the arguments cannot be used; 130 cancelled with Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..llm.errors import Cancelled, LLMError
from .terminal import message

FAILED, CANCELLED = 1, 130
MEMORY_MODES = ("auto", "gpu", "offload", "low_vram")
"""Those of refine, which is imported by its command only: it needs torch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s"
    )
    # It has its own handler: each of its warnings would be printed twice.
    logging.getLogger("huggingface_hub").propagate = False
    try:
        return options.run(options)
    except (Cancelled, KeyboardInterrupt):
        return _cancelled()
    except LLMError as error:
        return _failed(message(error))
    except BrokenPipeError:
        return FAILED  # the reader of stdout has gone, as with `| head`


def _cancelled() -> int:
    print("Cancelled.", file=sys.stderr)
    return CANCELLED


def _failed(reason: object) -> int:
    print(f"Error: {reason}", file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="image-refinery", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("-v", "--verbose", action="store_true", help="say what memory is freed")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_describe(commands)
    _add_refine(commands)
    _add_models(commands)
    doctor = commands.add_parser("doctor", help="what is installed, what is missing, what to do")
    doctor.set_defaults(run=_doctor)
    demo = commands.add_parser(
        "demo", help="describe, rewrite and refine a picture with the best there is"
    )
    demo.add_argument("image", nargs="?", type=Path, help="default: the example scene")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo-output"), metavar="DIR")
    demo.set_defaults(run=_demo)
    return parser


def _add_describe(commands: Any) -> None:
    describe = commands.add_parser("describe", help="describe images, and rewrite the descriptions")
    describe.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of them"
    )
    describe.add_argument("--recursive", action="store_true", help="the folders in folders too")
    describe.add_argument(
        "--txt", action="store_true", help="write each caption into a .txt beside its image"
    )
    describe.add_argument(
        "--skip-existing", action="store_true", help="leave out images that have such a .txt"
    )
    describe.add_argument(
        "--full-names",
        action="store_true",
        help="where a.jpg has a.txt already, write a.png.txt beside a.png",
    )
    describe.add_argument(
        "--keep-line-breaks",
        action="store_true",
        help="keep a caption's line breaks (trainers read the first line, or one line at random)",
    )
    describe.add_argument("--prefix", default="", metavar="TEXT", help="before each caption")
    describe.add_argument("--suffix", default="", metavar="TEXT", help="after each caption")
    describe.add_argument(
        "--instructions", default="", metavar="TEXT", help="rewrite the description by these"
    )
    describe.add_argument("--vision-model", metavar="NAME", help="default: one that is installed")
    describe.add_argument("--text-model", metavar="NAME", help="default: one that is installed")
    describe.add_argument(
        "--vision-prompt", default="", metavar="TEXT", help="ask this of the vision model"
    )
    describe.add_argument("--server", default="default", help="a name in image-refinery.toml")
    describe.add_argument("--seed", type=int, default=0)
    describe.add_argument(
        "--keep-loaded-minutes", type=float, default=0.0, metavar="N", help="default 0: unload"
    )
    describe.add_argument("--json", action="store_true", help="one JSON object per line and image")
    describe.set_defaults(run=_describe)


def _add_refine(commands: Any) -> None:
    refine = commands.add_parser("refine", help="refine images with an SDXL checkpoint")
    refine.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of them"
    )
    refine.add_argument("-o", "--output", type=Path, default=Path("refined"), metavar="DIR")
    refine.add_argument(
        "--compare", action="store_true", help="also write both side by side, and a magnified crop"
    )
    refine.add_argument(
        "--model",
        metavar="FILE|FOLDER|HUB-ID",
        help="default: what IMAGE_REFINERY_REFINER names, else the SDXL refiner 1.0 from the hub",
    )
    refine.add_argument("--strength", type=float, default=0.3, help="0 to 1, default 0.3")
    refine.add_argument("--steps", type=int, default=20, help="default 20, times strength")
    refine.add_argument("--guidance-scale", type=float, default=7.5, help="default 7.5")
    refine.add_argument("--prompt", default="", metavar="TEXT", help="what the images show")
    refine.add_argument("--negative-prompt", default="", metavar="TEXT")
    refine.add_argument("--seed", type=int, default=0, help="image i uses SEED + i")
    refine.add_argument(
        "--memory-mode", choices=MEMORY_MODES, default="auto", help="see docs/memory.md"
    )
    refine.add_argument(
        "--mask", type=Path, metavar="FILE", help="refine only where this picture is not black"
    )
    refine.set_defaults(run=_refine)


def _add_models(commands: Any) -> None:
    models = commands.add_parser("models", help="list the models, or fetch one")
    models.add_argument(
        "--pull",
        metavar="NAME",
        help="smolvlm and smolvlm2: for the embedded engine; any other name: for the server",
    )
    models.add_argument("--server", default="default", help="a name in image-refinery.toml")
    models.set_defaults(run=_models)


# The commands are imported when they run: `--help` needs neither torch nor requests nor Pillow.


def _describe(options: argparse.Namespace) -> int:
    from .describe import describe

    return describe(options)


def _refine(options: argparse.Namespace) -> int:
    from ..refine import RefineCancelled, RefineError
    from .refine import refine

    try:
        return refine(options)
    except RefineCancelled:
        return _cancelled()
    except RefineError as error:
        return _failed(error)


def _models(options: argparse.Namespace) -> int:
    from .models import list_models, pull_model

    return pull_model(options.pull, options.server) if options.pull else list_models(options.server)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import doctor

    return doctor()


def _demo(options: argparse.Namespace) -> int:
    from ..refine import RefineCancelled
    from .demo import demo

    try:
        return demo(options.image, options.output)
    except RefineCancelled:
        return _cancelled()
