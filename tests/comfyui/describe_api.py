"""Print the parameters of names in ComfyUI (or in the stub) as JSON.

    python describe_api.py ROOT --cpu < names.json

Runs in a process of its own, once over the stub and once over the real thing: both have modules of
the same names. ROOT is put on sys.path; names are "module:qualified.name".
Answer: RESULT and {name: [[parameter, default as text or null], ...], "value", or null}.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path


def parameters(thing):
    """Names and defaults, but for self, *args and **kwargs."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return []
    return [
        [one.name, None if one.default is inspect.Parameter.empty else repr(one.default)]
        for one in inspect.signature(thing).parameters.values()
        if one.name not in ("self", "cls", "args", "kwargs")
    ]


def described(wanted):
    """One name's parameters; "value" for what is not called; None where it does not exist."""
    module, path = wanted.split(":")
    thing = importlib.import_module(module)
    for name in path.split("."):
        thing = getattr(thing, name, None)
    if thing is None:
        return None
    return parameters(thing) if inspect.isroutine(thing) or inspect.isclass(thing) else "value"


if __name__ == "__main__":
    names = json.loads(sys.stdin.read())
    root = Path(sys.argv.pop(1))
    sys.path[0] = str(root)  # instead of this script's folder
    if (root / "comfy" / "options.py").is_file():
        # ComfyUI looks at --cpu only where this is switched on, and else asks the GPU's driver
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
    sys.stdout.write(f"RESULT{json.dumps({name: described(name) for name in names})}\n")
