"""Print the public Python API of a checkout as JSON; griffe reads it without importing anything.

    python tools/public_api.py [CHECKOUT] > tests/public_api/VERSION.json

Public are the names in `__all__` of the packages in PACKAGES, and the names that README and docs
import from elsewhere (DOCUMENTED). tests/test_public_api.py compares it with that of each release.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import griffe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("refine", "ollama_client")
DOCUMENTED = {
    "memory": ("StageMemory",),
    "ollama_client.stages": ("Job", "Stage", "run"),
}
SPECIAL = ("__init__", "__enter__", "__exit__")
NOT_A_LITERAL = "..."
"""A computed default, or a constant whose name may change."""

Api = dict[str, Any]


def read_api(checkout: Path) -> Api:
    """Return the entries of all public names of a checkout, by names like "refine.ImageRefiner"."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text("utf-8"))
    api: Api = {}
    with tempfile.TemporaryDirectory() as folder:
        # The checkout's folder may have any name, and contains more than the packages.
        for name in project["tool"]["setuptools"]["packages"]:
            source = checkout.joinpath(*name.split(".")[1:])
            target = Path(folder, *name.split("."))
            target.mkdir(parents=True, exist_ok=True)
            for file in source.glob("*.py"):
                shutil.copy(file, target)
        loader = griffe.GriffeLoader(search_paths=[folder])
        package = loader.load("image_refinery")
        listed = {name: package[name].exports or () for name in PACKAGES}
        for name, names in [*listed.items(), *DOCUMENTED.items()]:
            for one in names:
                with suppress(KeyError):  # not in this checkout
                    _add(api, f"{name}.{one}", package[f"{name}.{one}"])
    return api


def differences(old: Api, new: Api) -> dict[str, str]:
    """Return what breaks callers of the old API: {public name: what changed}."""
    found: dict[str, str] = {}
    for name, entry in old.items():
        holder = name.rpartition(".")[0]
        if name not in new:
            if holder not in found:
                found[name] = f"{entry['kind']} is gone"
        elif problem := _changed(entry, new[name]):
            found[name] = problem
    return found


def _changed(old: Api, new: Api) -> str:
    """Return what is incompatible in one name, or an empty text."""
    if old["kind"] != new["kind"]:
        return f"was a {old['kind']}, is a {new['kind']}"
    problems = [
        f"is no longer a {base}" for base in old.get("bases", ()) if base not in new["bases"]
    ]
    before, now = old.get("parameters", {}), new.get("parameters", {})
    swallows = {one["kind"] for one in now.values() if one["kind"].startswith("variadic")}
    for name, parameter in before.items():
        if name not in now:
            if parameter["kind"] != "keyword-only" or "variadic keyword" not in swallows:
                problems.append(f"parameter {name} is gone")
            continue
        problems += [
            f"parameter {name}: {what} was {parameter.get(what)}, is {now[name].get(what)}"
            for what in ("kind", "default")
            if what == "kind" or parameter.get(what) != NOT_A_LITERAL
            if parameter.get(what) not in (now[name].get(what), None)
        ]
        if "default" in parameter and "default" not in now[name]:
            problems.append(f"parameter {name} is required")
    problems += [
        f"new parameter {name} is required"
        for name, parameter in now.items()
        if name not in before
        and "default" not in parameter
        and not parameter["kind"].startswith("variadic")
    ]
    places = [name for name, one in before.items() if one["kind"] == "positional or keyword"]
    if not problems and list(now)[: len(places)] != places:
        problems.append(f"parameters have another order: {', '.join(now)}")
    return "; ".join(problems)


def _add(api: Api, name: str, found: griffe.Object | griffe.Alias) -> None:
    """Add an entry for one name, and for the members of a class."""
    found = _follow(found)
    entry: Api = {"kind": "property or attribute" if found.is_attribute else found.kind.value}
    api[name] = entry
    if isinstance(found, griffe.Function):
        entry["parameters"] = {
            parameter.name: _parameter(parameter)
            for parameter in found.parameters
            if parameter.name != "self"
        }
    if isinstance(found, griffe.Class):
        bases = {
            str(base).rpartition(".")[2] for one in (found, *found.mro()) for base in one.bases
        }
        entry["bases"] = sorted(base for base in bases if "[" not in base and base != "Protocol")
        for member, inner in found.all_members.items():
            if not member.startswith("_") or member in SPECIAL:
                _add(api, f"{name}.{member}", inner)


def _follow(found: griffe.Object | griffe.Alias) -> griffe.Object:
    """Return the target of a name: an import from elsewhere, or `old_name = new_name`."""
    target = found.final_target if isinstance(found, griffe.Alias) else found
    value = target.value if isinstance(target, griffe.Attribute) else None
    if isinstance(value, griffe.ExprName):
        try:
            return _follow(target.modules_collection[value.canonical_path])
        except KeyError:  # not of this package
            return target
    return target


def _parameter(parameter: griffe.Parameter) -> dict[str, str]:
    """Return the kind and the default; a default that is not a literal equals any default."""
    assert parameter.kind is not None
    entry = {"kind": parameter.kind.value}
    if not parameter.required and not entry["kind"].startswith("variadic"):
        text = str(parameter.default)
        try:
            entry["default"] = repr(ast.literal_eval(text))
        except ValueError:
            entry["default"] = NOT_A_LITERAL
    return entry


if __name__ == "__main__":
    api = read_api(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in api.items()]
    print("{", ",\n".join(lines), "}", sep="\n")
