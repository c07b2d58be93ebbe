"""The commands to type here to start this package's command line and to install a package."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

# Not resolved: a pack that is linked into custom_nodes runs under that path.
PACK = Path(os.path.abspath(__file__)).parent
SCRIPT = "image-refinery"
_MODULE = "image_refinery"


def program() -> str:
    """Return the command that starts the command line here, such as `image-refinery`.

    A folder in ComfyUI's custom_nodes, or one started as `python FOLDER`, is not an installed
    package and has no script. There it is `python custom_nodes/image-refinery`.
    """
    if sys.orig_argv[1:3] == ["-m", _MODULE]:
        return f"{python()} -m {_MODULE}"
    started_as_folder = Path(sys.argv[0]).name == "__main__.py" and _is_pack(sys.argv[0])
    if started_as_folder or PACK.parent.name == "custom_nodes":
        return f"{python()} {_shown(PACK)}"
    return SCRIPT


def python() -> str:
    """Return the interpreter that runs this program, as to be typed in the current folder."""
    executable = Path(sys.executable)
    if _is_inside(executable):
        return _shown(executable)
    for name in ("python", "python3"):
        # By the folder: in that of a virtual environment, both names mean its Python.
        if (found := shutil.which(name)) and Path(found).parent == executable.parent:
            return name
    return _shown(executable)


def install(package: str) -> str:
    """Return the command that installs a package for this program."""
    return f"{python()} -m pip install {package}"


def pull(model: str) -> str:
    """Return the command that fetches a model for the embedded engine."""
    return f"{program()} models --pull {model}"


def _is_pack(file: str) -> bool:
    return Path(file).resolve().parent == PACK.resolve()


def _is_inside(path: Path) -> bool:
    # Not resolved: the python of a virtual environment is a link.
    return Path(os.path.abspath(path)).is_relative_to(Path.cwd())


def _shown(path: Path) -> str:
    text = os.path.relpath(path) if _is_inside(path) else str(path)
    return f'"{text}"' if " " in text else text
