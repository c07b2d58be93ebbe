"""Check that installing the pack does not break ComfyUI, in copies of its environment.

    python tools/check_environments.py ~/comfy/ComfyUI --transformers 4.57.6 --transformers 5.23.0

For each version of transformers: creates a virtual environment with ComfyUI's own requirements,
that transformers, and the torch of ComfyUI's environment; installs requirements.txt into it like
ComfyUI-Manager (one line at a time); checks that `from transformers import CLIPTokenizer` still
works, that ComfyUI starts, and that the pack loads in it. Exit status 0: nothing broke.

This is not a quick test: it downloads packages that are not cached, and starts ComfyUI once per
version. It needs `uv` and everything that tests/comfyui needs. It does not change ComfyUI or its
environment.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from comfyui_host import load_host

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("torch", "numpy", "transformers", "tokenizers", "huggingface-hub", "diffusers")
SHOWN += ("accelerate", "safetensors", "pillow")


class BrokenEnvironment(Exception):
    """Something no longer works; the message says what."""


def run(command: Sequence[str | Path], what: str) -> str:
    """Return what a command printed, or raise BrokenEnvironment with its last lines."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last_lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-12:]
        raise BrokenEnvironment("\n".join([f"{what} failed:", *last_lines]))
    return done.stdout


def versions(python: Path, uv: str) -> dict[str, str]:
    """Return the installed versions by project name."""
    listed = run([uv, "pip", "freeze", "-p", python], "Listing packages")
    pairs = (line.split("==", 1) for line in listed.splitlines() if "==" in line)
    return dict(pairs)


def requirement_lines(file: Path) -> list[str]:
    """Return the requirements in a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def fresh_environment(home: Path, source: Path, target: Path, transformers: str, uv: str) -> Path:
    """Create the environment of a new ComfyUI with this transformers; return its interpreter.

    torch, torchvision and torchaudio have the versions of `source`: they must match.
    """
    run([uv, "venv", "--seed", "-q", "-p", source, target], "Making an environment")
    inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    python = target / inside
    present = versions(source, uv)
    torch = [f"{name}=={present[name]}" for name in ("torch", "torchvision", "torchaudio")]
    wanted = [*torch, f"transformers=={transformers}", "-r", home / "requirements.txt"]
    run([uv, "pip", "install", "-q", "-p", python, *wanted], "Installing ComfyUI's requirements")
    return python


def install_like_the_manager(python: Path, lines: Sequence[str]) -> None:
    """Run one `pip install` per line; each resolves only its own line."""
    for line in lines:
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", line]
        run(command, f"pip install {line!r}")


def check_start(home: Path, python: Path, base: Path) -> str:
    """Start ComfyUI with the pack; return the pack's line of the import table."""
    host = load_host()
    found = host.FoundHost(home, python, ())
    try:
        with host.ComfyHost(found, base) as running:
            line = running.import_line()
            if "FAILED" in line:
                raise BrokenEnvironment(
                    f"ComfyUI started, but the pack failed to load:\n{running.log}"
                )
            running.object_info("RefineryLLMImageRefine")
    except AssertionError as error:
        raise BrokenEnvironment(f"ComfyUI did not start:\n{error}") from error
    return line


def check(home: Path, source: Path, transformers: str, lines: Sequence[str], out: TextIO) -> None:
    """Check one version of transformers; raise BrokenEnvironment if something no longer works."""
    uv = shutil.which("uv")
    if uv is None:
        raise BrokenEnvironment("uv is not installed: pip install uv")
    with tempfile.TemporaryDirectory(prefix="environment-") as folder:
        python = fresh_environment(home, source, Path(folder, "venv"), transformers, uv)
        before = versions(python, uv)
        install_like_the_manager(python, lines)
        after = versions(python, uv)
        for name in sorted({*SHOWN, *(k for k in after if before.get(k) != after[k])}):
            was, now = before.get(name, "-"), after.get(name, "-")
            out.write(f"  {name:18} {was:14} {now if now != was else 'unchanged'}\n")
        importing = "from transformers import CLIPTokenizer; print(CLIPTokenizer.__name__)"
        run([python, "-c", importing], "from transformers import CLIPTokenizer")
        out.write("  from transformers import CLIPTokenizer: works\n")
        pipelines = "from diffusers import StableDiffusionXLImg2ImgPipeline"
        run([python, "-c", pipelines], pipelines)
        out.write(f"  {pipelines}: works\n")
        line = check_start(home, python, Path(folder, "base"))
        out.write(f"  ComfyUI starts; import time of the pack: {line.split(':')[0]}\n")


def main() -> int:
    """Check the versions on the command line; return 1 if something broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("comfyui", type=Path, help="ComfyUI's folder, with its .venv or venv")
    parser.add_argument("--python", type=Path, help="ComfyUI's interpreter, if it is elsewhere")
    parser.add_argument("--transformers", action="append", required=True, metavar="VERSION")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    args = parser.parse_args()
    home = args.comfyui.expanduser().resolve()
    python = args.python or load_host().interpreter(home)
    lines = requirement_lines(args.requirements)
    broken = 0
    for version in args.transformers:
        sys.stdout.write(f"transformers {version}, then {', '.join(lines)}\n")
        try:
            check(home, python, version, lines, sys.stdout)
        except BrokenEnvironment as error:
            broken += 1
            sys.stdout.write(f"  BROKEN: {error}\n")
        sys.stdout.flush()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
