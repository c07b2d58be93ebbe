"""Start the command line: `python -m image_refinery`, or `python FOLDER` for this folder."""

import os
import sys
from pathlib import Path

if not __package__:
    # `python custom_nodes/image-refinery doctor`: import this folder as the package, whatever its
    # name, and keep its own folders (nodes, memory, ...) from being importable as modules.
    import importlib.util
    import runpy

    # Not resolved: a folder that is linked into custom_nodes is in custom_nodes.
    folder = Path(os.path.abspath(__file__)).parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder.resolve()]
    spec = importlib.util.spec_from_file_location("image_refinery", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    runpy.run_module("image_refinery", run_name="__main__", alter_sys=True)

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
