"""Folders of one temporary base directory."""

import atexit
import shutil
import tempfile
from pathlib import Path

base_path = tempfile.mkdtemp(prefix="comfy_stub_")
atexit.register(shutil.rmtree, base_path, ignore_errors=True)


def _folder(name: str) -> str:
    folder = Path(base_path, name)
    folder.mkdir(exist_ok=True)
    return str(folder)


def get_input_directory() -> str:
    return _folder("input")


def get_output_directory() -> str:
    return _folder("output")


def get_temp_directory() -> str:
    return _folder("temp")


def get_user_directory() -> str:
    return _folder("user")


def get_filename_list(folder_name: str) -> list[str]:
    folder = Path(_folder("models"), folder_name)
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def get_full_path(folder_name: str, filename: str) -> str | None:
    file = Path(_folder("models"), folder_name, filename)
    return str(file) if file.is_file() else None


models_dir = _folder("models")
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}
