"""Read the command line's arguments and run a command."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._program import program
from .._version import __version__
from ..captioning.options import MAX_PARALLEL
from ..llm.errors import Cancelled, LLMError
from .terminal import FAILED, WRONG_ARGUMENTS, cancelled, failed, message

TASKS = (
    *("describe", "rewrite", "caption", "refine"),
    *("describe,refine", "rewrite,refine", "caption,refine"),
)
"""Of `batch`."""

# As in `jobs` and `refine`, which their commands import: `--help` does not wait for them.
KINDS = ("txt", "jsonl", "parquet", "wds")
MAX_TOKENS = 225
MEMORY_MODES = ("auto", "gpu", "offload", "low_vram")

_EPILOG = """\
Use COMMAND -h to see the options of a command. Results go to stdout, progress
and errors to stderr. Exit codes: 0 success, 1 something failed, 2 wrong
arguments, 130 cancelled with Ctrl-C.
"""

_OTHER_NAMES = {
    "--cfg": "--guidance-scale",
    "--checkpoint": "--model",
    "--denoise": "--strength",
    "--model": "--vision-model",
    "--prompt": "--vision-prompt",
    "--url": "--server",
}
"""Options that other programs or our own other commands have, and what is meant here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # parse_args would print the usage of `parser`, which has none of the options
        options.parser.error(_about_unknown(unknown, options.parser))
    if options.run is None:
        parser.print_help()
        return WRONG_ARGUMENTS
    handler = logging.StreamHandler()
    handler.addFilter(_is_not_printed_otherwise)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(message)s",
        handlers=[handler],
    )
    # It has its own handler: each of its warnings would be printed twice.
    logging.getLogger("huggingface_hub").propagate = False
    try:
        return options.run(options)
    except (Cancelled, KeyboardInterrupt):
        return cancelled()
    except LLMError as error:
        print(f"Error: {message(error)}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return FAILED  # the reader of stdout has gone, as with `| head`


def _is_not_printed_otherwise(record: logging.LogRecord) -> bool:
    """`describe` prints the warnings of a run itself, with the names of the images."""
    return record.levelno != logging.WARNING or not record.name.endswith(".captioning.run")


def _about_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return a message about arguments that a command does not have."""
    wrong = next((word for word in unknown if word.startswith("-")), "")
    if not wrong:
        return f"unrecognized arguments: {' '.join(unknown)}"
    name = wrong.partition("=")[0]
    known = re.findall(r"--[\w-]+", parser.format_help())
    meant = [other for other in (_OTHER_NAMES.get(name),) if other in known]
    meant += difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    hint = f"Did you mean {meant[0]}?" if meant else "-h lists the options."
    return f"unrecognized option: {name}. {hint}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Describe images with a language model, and refine them with SDXL.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(run=None, parser=parser)
    # SUPPRESS: the command's default must not replace what was given before the command.
    verbose = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for one in (parser, verbose):
        one.add_argument(
            "-v", "--verbose", action="store_true", help="also print which memory is freed"
        )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str, more: str = ""
    ) -> argparse.ArgumentParser:
        text = f"{help[0].upper()}{help[1:]}.{more}"
        command = commands.add_parser(name, help=help, description=text, parents=[verbose])
        command.set_defaults(run=run, parser=command)
        return command

    _add_describe(
        add(
            "describe",
            _describe,
            "describe images with a vision model",
            " With --instructions or --preset, a text model rewrites each description.",
        )
    )
    _add_refine(
        add(
            "refine",
            _refine,
            "refine images with an SDXL checkpoint",
            " Writes one PNG file per image.",
        )
    )
    _add_refine_splat(
        add(
            "refine-splat",
            _refine_splat,
            "refine the colors of a 3D Gaussian splat (experimental)",
            " Refines views from all around, and changes the colors so that they match.",
        )
    )
    _add_batch(
        add(
            "batch",
            _batch,
            "caption or refine any number of images as a job that can be continued",
            " Run the same command again to continue.",
        )
    )
    _add_models(add("models", _models, "list the installed models, or download one"))
    words = add("words", _words, "print the words that ComfyUI saved in an image")
    words.usage = "%(prog)s [OPTION ...] FILE [FILE ...]"
    words.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images that ComfyUI saved (PNG or WebP), or workflows (.json)",
    )
    words.add_argument("--json", action="store_true", help="print one line of JSON per file")
    doctor = add(
        "doctor",
        _doctor,
        "check packages, GPU, servers and models",
        " Prints what is missing and what to do.",
    )
    doctor.add_argument(
        "--report",
        action="store_true",
        help="print a report for an issue: no paths, addresses, keys or names of people",
    )
    doctor.add_argument(
        "--clear-answers", action="store_true", help="remove the answers of earlier runs"
    )
    demo = add("demo", _demo, "describe, rewrite and refine an example image or yours")
    demo.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="your image (default: the example)"
    )
    _add_output(demo, "demo-output")
    _add_prove(
        add(
            "prove",
            _prove,
            "run both halves over photographs, and write what they did here",
            " Downloads SmolVLM and the SDXL refiner (6 GB) if they are missing, and writes "
            "proof.json and a page. Exit code 1 if anything is missing.",
        )
    )
    return parser


def _add_prove(prove: argparse.ArgumentParser) -> None:
    prove.add_argument(
        "photos",
        nargs="*",
        type=Path,
        metavar="PHOTO",
        help="your photographs, or folders of them (default: ten free ones, most of them from the "
        "package scikit-image)",
    )
    _add_output(prove, "proof")
    prove.add_argument("--overwrite", action="store_true", help="replace an earlier proof")
    prove.add_argument(
        "--no-download", action="store_true", help="use only what is on this machine"
    )
    _add_server(prove)
    _add_models_of(prove)
    _add_checkpoint(prove)


def _add_describe(describe: argparse.ArgumentParser) -> None:
    _add_images(describe)
    describe.add_argument("--recursive", action="store_true", help="include subfolders")
    _add_prompts(describe)
    _add_server(describe)
    describe.add_argument("--json", action="store_true", help="print one line of JSON per image")
    captions = describe.add_argument_group("caption files")
    captions.add_argument(
        "--txt", action="store_true", help="write each caption to a .txt file beside its image"
    )
    existing = captions.add_mutually_exclusive_group()
    existing.add_argument(
        "--skip-existing", action="store_true", help="skip images that already have a caption"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace existing captions")
    captions.add_argument(
        "--full-names",
        action="store_true",
        help="if a.jpg has the caption a.txt, write a.png.txt for a.png",
    )
    captions.add_argument(
        "--keep-line-breaks",
        action="store_true",
        help="keep line breaks (many trainers read only one line)",
    )
    captions.add_argument(
        "--prefix",
        default="",
        metavar="TEXT",
        help="text before each caption, such as a trigger word",
    )
    captions.add_argument("--suffix", default="", metavar="TEXT", help="text after each caption")


def _add_prompts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--instructions",
        default="",
        metavar="TEXT",
        help='how to rewrite each description, such as "Tags only."; {name}, {folder}, {tags} (the '
        "caption that is there), {width} and {height} are filled for each image",
    )
    command.add_argument(
        "--preset",
        metavar="NAME",
        help='rewrite by a prompt preset, such as "Tag list"; --instructions replaces its text, '
        "--num-predict its length",
    )
    command.add_argument(
        "--vision-prompt",
        default="",
        metavar="TEXT",
        help="what to ask the vision model (default: a detailed description)",
    )
    _add_models_of(command)
    command.add_argument(
        "--seed", type=_at_least(0, int), default=0, metavar="N", help="random seed (default: 0)"
    )
    command.add_argument(
        "--num-predict",
        type=_at_least(1, int),
        metavar="N",
        help="longest answer in tokens (default: 512 to describe, 1024 to rewrite)",
    )
    command.add_argument(
        "--keep-loaded-minutes",
        type=_at_least(0, float),
        default=0.0,
        metavar="N",
        help="keep the models loaded for N minutes (default: 0, unload after use)",
    )


def _add_models_of(command: argparse.ArgumentParser) -> None:
    for name, does in (("vision", "describes"), ("text", "rewrites")):
        command.add_argument(
            f"--{name}-model",
            metavar="NAME",
            help=f"the model that {does} (default: one that is installed)",
        )


def _add_batch(batch: argparse.ArgumentParser) -> None:
    batch.usage = "%(prog)s --job DIR [OPTION ...] INPUT [INPUT ...]"
    batch.add_argument(
        "inputs",
        nargs="+",
        type=_path_or_address,
        metavar="INPUT",
        help="folders, images, lists of paths (.txt, .jsonl with file_name, .parquet), .tar files, "
        "or addresses such as s3://bucket/folder",
    )
    batch.add_argument(
        "--job",
        type=Path,
        required=True,
        metavar="DIR",
        help="the job's own folder: its settings, its results, its report",
    )
    batch.add_argument(
        "--task",
        choices=TASKS,
        default="describe",
        metavar="TASK",  # the choices have commas themselves
        help="describe; rewrite: the captions beside the images; caption: describe and rewrite; "
        "refine; or a chain, such as caption,refine (default: describe)",
    )
    batch.add_argument("--recursive", action="store_true", help="include subfolders")
    batch.add_argument(
        "--pattern",
        action="append",
        default=[],
        metavar="GLOB",
        help='only images whose path matches, such as "cats/*.png"; may be given several times',
    )
    batch.add_argument(
        "--column",
        default="",
        metavar="NAME",
        help="the column of paths in .parquet files (default: file_name, path or image_path)",
    )
    _add_prompts(batch)
    batch.add_argument(
        "--server",
        action="append",
        metavar="NAME",
        help="a server of image-refinery.toml, or a kind such as ollama; several share the images",
    )
    for name in ("vision", "text"):
        batch.add_argument(
            f"--{name}-server",
            action="append",
            metavar="NAME",
            help=f"a server for the {name} model only, so that no models are swapped; several "
            "share the work",
        )
    batch.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="ask the servers, or refine on all GPUs, from a Ray cluster, such as auto or "
        "ray://head:10001 (default: a Ray on this machine); all machines need the images under the "
        "same paths",
    )
    batch.add_argument(
        "--allow-mixed",
        action="store_true",
        help="let servers have different models under one name; each result records its model",
    )
    batch.add_argument(
        "--parallel",
        type=int,
        choices=range(1, MAX_PARALLEL + 1),
        default=1,
        metavar="N",
        help=f"requests at a time for each server, which must allow as many (1 to {MAX_PARALLEL}; "
        "default: 1)",
    )
    batch.add_argument(
        "--out",
        type=_kinds,
        default=("jsonl",),
        metavar="KINDS",
        help="txt (a file for each image), jsonl (metadata.jsonl), parquet (captions.parquet), wds "
        "(WebDataset shards), or several, such as txt,jsonl (default: jsonl)",
    )
    batch.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the outputs (default: .txt beside each image, refined images in refined "
        "in the job, the rest in the job)",
    )
    batch.add_argument(
        "--existing",
        choices=("skip", "overwrite"),
        default="skip",
        help="what to do with caption files and refined images that another program wrote "
        "(default: skip)",
    )
    batch.add_argument("--prefix", default="", metavar="TEXT", help="text before each caption")
    batch.add_argument("--suffix", default="", metavar="TEXT", help="text after each caption")
    batch.add_argument(
        "--chunk",
        type=_at_least(1, int),
        metavar="N",
        help="images between two swaps of models (default: learned, so that swaps take 2 percent "
        "of the time)",
    )
    batch.add_argument(
        "--workflow",
        type=Path,
        metavar="FILE",
        help="run this ComfyUI workflow for each image, in place of captions: a file of Export "
        "(API) with {image}, {path}, {name} or {seed} in its texts; --output downloads the results",
    )
    batch.add_argument(
        "--comfyui",
        action="append",
        metavar="URL",
        help="with --workflow: the address of a ComfyUI, such as http://127.0.0.1:8188; several "
        "share the images",
    )
    batch.add_argument(
        "--limit", type=_at_least(1, int), metavar="N", help="at most N images in this run"
    )
    batch.add_argument("--retry-failed", action="store_true", help="try failed images again, too")
    batch.add_argument(
        "--retry-flagged",
        action="store_true",
        help="answer images with a suspicious text again, with another seed",
    )
    batch.add_argument(
        "--max-tokens",
        type=_at_least(1, int),
        default=MAX_TOKENS,
        metavar="N",
        help=f"flag captions that surely have more than N tokens of CLIP (default: {MAX_TOKENS})",
    )
    batch.add_argument(
        "--estimate",
        action="store_true",
        help="print how long the images that are left would take; use with --limit 20",
    )
    batch.add_argument(
        "--dry-run", action="store_true", help="print what is to do, without asking a server"
    )
    refined = batch.add_argument_group("refined images (--task refine)")
    _add_refiner(refined)
    refined.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the images show; {caption} is the caption of --task caption,refine (default: "
        "the caption, else nothing)",
    )
    refined.add_argument(
        "--format",
        choices=("png", "jpg", "webp"),
        default="png",
        help="format of the refined images (default: png)",
    )
    refined.add_argument(
        "--quality",
        type=int,
        choices=range(1, 101),
        default=95,
        metavar="N",
        help="quality of jpg and webp (1 to 100; default: 95)",
    )


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    if wrong := set(kinds).difference(KINDS):
        raise argparse.ArgumentTypeError(f"{sorted(wrong)[0]} is not one of {', '.join(KINDS)}")
    return kinds


def _path_or_address(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _add_refine(refine: argparse.ArgumentParser) -> None:
    _add_images(refine)
    _add_output(refine, "refined")
    existing = refine.add_mutually_exclusive_group()
    existing.add_argument(
        "--skip-existing", action="store_true", help="skip images that are already refined"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    refine.add_argument(
        "--compare",
        action="store_true",
        help="also write an image with before, after and a magnified crop",
    )
    _add_refiner(refine)
    refine.add_argument("--prompt", default="", metavar="TEXT", help="what the images show")
    refine.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed of the first image, the next has N + 1 (default: 0)",
    )
    refine.add_argument(
        "--mask", type=Path, metavar="FILE", help="refine only where this image is not black"
    )
    refine.add_argument(
        "--regions",
        choices=("separate", "one box"),
        default="separate",
        help="refine each separate part of --mask by itself, or the box around all of them "
        "(default: separate)",
    )
    refine.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="N",
        help="enlarge by this factor first, from 1 to 4 (default: 1)",
    )
    refine.add_argument(
        "--prompt-syntax",
        choices=("plain text", "ComfyUI weights"),
        default="plain text",
        help="read weights such as (word:1.3) or not (default: plain text)",
    )
    tiles = refine.add_argument_group("a prompt for each tile")
    tiles.add_argument(
        "--describe-tiles",
        action="store_true",
        help="describe each tile or region with a vision model; its text joins --prompt, in place "
        "of {tile} or after it",
    )
    tiles.add_argument(
        "--vision-model",
        default="auto",
        metavar="NAME",
        help="for --describe-tiles (default: auto, one that the server has)",
    )
    _add_server(tiles)


def _add_refine_splat(refine: argparse.ArgumentParser) -> None:
    refine.usage = "%(prog)s [OPTION ...] FILE.ply"
    refine.add_argument("splat", type=Path, metavar="FILE.ply", help="a splat as a .ply file")
    refine.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the .ply file to write; an image of before and after goes beside it (default: "
        "NAME-refined.ply beside the splat)",
    )
    refine.add_argument("--overwrite", action="store_true", help="replace existing files")
    for name, value, text in (
        ("views", 16, "how many cameras around the splat"),
        ("size", 512, "width and height of a view in pixels"),
        ("passes", 4, "how often the colors are compared with all views"),
    ):
        refine.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})"
        )
    _add_refiner(refine, strength=0.25)
    refine.add_argument("--prompt", default="", metavar="TEXT", help="what the splat shows")
    refine.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of all views (default: 0)"
    )


def _add_refiner(
    refine: Any, strength: float = 0.3
) -> None:  # a parser or a group; their common class is private
    _add_checkpoint(refine)
    refine.add_argument(
        "--strength",
        type=float,
        default=strength,
        metavar="N",
        help=f"how much to change, from 0 to 1 (default: {strength})",
    )
    refine.add_argument(
        "--steps",
        type=int,
        default=20,
        metavar="N",
        help="schedule length; steps x strength run (default: 20)",
    )
    refine.add_argument(
        "--guidance-scale",
        type=float,
        default=7.5,
        metavar="N",
        help="CFG: how closely to follow the prompt; 1 or less turns guidance off (default: 7.5)",
    )
    refine.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what they should not look like"
    )
    refine.add_argument(
        "--memory-mode",
        choices=MEMORY_MODES,
        default="auto",
        help="where the weights are kept, see docs/memory.md (default: auto)",
    )


def _add_checkpoint(command: Any) -> None:  # a parser or a group
    command.add_argument(
        "--model",
        metavar="NAME",
        help="a .safetensors file, a diffusers folder or a Hugging Face id (default: "
        "IMAGE_REFINERY_REFINER, else the SDXL refiner 1.0 from ComfyUI's models/checkpoints, else "
        "a download of 6 GB)",
    )


def _add_models(models: argparse.ArgumentParser) -> None:
    models.add_argument(
        "--pull",
        metavar="NAME",
        help="download a model: smolvlm and smolvlm2 for the embedded engine, any other name for "
        "the server",
    )
    _add_server(models)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s [OPTION ...] IMAGE [IMAGE ...]"
    command.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images"
    )


def _add_output(command: argparse.ArgumentParser, folder: str) -> None:
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help=f"folder for the results (default: {folder})",
    )


def _add_server(command: Any) -> None:  # a parser or a group
    command.add_argument(
        "--server",
        default="default",
        metavar="NAME",
        help="a server of image-refinery.toml, a kind such as ollama or lmstudio, or embedded",
    )


def _at_least(least: int, number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what reads a number that is not below `least`."""

    def read(text: str) -> Any:
        value = number(text)
        if not value >= least:  # NaN is not either
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {text}")
        return value

    read.__name__ = number.__name__  # argparse: "invalid int value"
    return read


# The commands are imported when they run: `--help` needs neither torch nor requests nor Pillow.


def _describe(options: argparse.Namespace) -> int:
    from .describe import describe

    return describe(options)


def _batch(options: argparse.Namespace) -> int:
    from .batch import batch

    if "refine" not in options.task:
        return batch(options)
    return _with_refine_errors(lambda: batch(options))


def _refine(options: argparse.Namespace) -> int:
    from .refine import refine

    return _with_refine_errors(lambda: refine(options))


def _refine_splat(options: argparse.Namespace) -> int:
    from .refine_splat import refine_splat

    return _with_refine_errors(lambda: refine_splat(options))


def _with_refine_errors(command: Callable[[], int]) -> int:
    from ..refine import HubError, RefineCancelled, RefineError, SettingsError

    try:
        return command()
    except RefineCancelled:
        return cancelled()
    except HubError as error:
        return failed(error, f"{error} Name a file here with --model FILE.")
    except SettingsError as error:
        return failed(error, str(error).replace("num_inference_steps", "--steps"))
    except RefineError as error:
        return failed(error)


def _models(options: argparse.Namespace) -> int:
    from .models import list_models, pull_model

    return pull_model(options.pull, options.server) if options.pull else list_models(options.server)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import clear_answers, doctor

    return clear_answers() if options.clear_answers else doctor(safe=options.report)


def _words(options: argparse.Namespace) -> int:
    from .words import words

    return words(options)


def _demo(options: argparse.Namespace) -> int:
    from ..refine import RefineCancelled
    from .demo import demo

    try:
        return demo(options.image, options.output)
    except RefineCancelled:
        return cancelled()


def _prove(options: argparse.Namespace) -> int:
    from .prove import prove

    return _with_refine_errors(lambda: prove(options))
