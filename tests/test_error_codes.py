"""Every error that a user sees has a code of its own, which docs/errors.md explains."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
# A released code keeps its meaning: add lines, but never change or reuse one.
CODES = {
    "R101": "ServerUnreachable",
    "R102": "NoServer",
    "R103": "UnknownServer",
    "R104": "ConnectionBroke",
    "R105": "ServerTimeout",
    "R106": "AccessDenied",
    "R107": "Redirected",
    "R108": "EndpointMissing",
    "R109": "ServerBusy",
    "R110": "ServerConfigError",
    "R201": "ModelNotFound",
    "R202": "NoModel",
    "R203": "NotInLibrary",
    "R204": "NoVision",
    "R205": "NoThinking",
    "R206": "LoadFailed",
    "R207": "OutOfMemory",
    "R208": "PullError",
    "R209": "NotPullable",
    "R301": "BadRequest",
    "R302": "UnusableImage",
    "R303": "NoPrompt",
    "R304": "EmptyAnswer",
    "R305": "IncompleteAnswer",
    "R306": "ContextTooLong",
    "R307": "UnexpectedResponse",
    "R308": "WrongForm",
    "R309": "LLMError",
    "R401": "SettingsError",
    "R402": "ImageError",
    "R403": "CheckpointError",
    "R404": "VocabularyError",
    "R405": "HubError",
    "R406": "DeviceMemoryError",
    "R407": "NotFiniteError",
    "R408": "SplatError",
    "R501": "BadInput",
    "R502": "OutsideFolder",
    "R503": "UnreadableImage",
    "R504": "NoFolder",
    "R505": "NoImages",
    "R506": "NotWritten",
    "R507": "NameTaken",
    "R508": "MissingPackages",
    "R509": "PresetError",
    "R510": "BadInputList",
    "R511": "JobError",
    "R512": "ComfyUIError",
    "R513": "WorkflowError",
    "R514": "RunFailed",
}
FAMILIES = {
    "image_refinery.llm.errors": ("LLMError",),
    "image_refinery.llm.llamacpp.pull": ("PullError",),
    "image_refinery.refine.errors": ("RefineError",),
    "image_refinery.files": (
        *("OutsideFolder", "UnreadableImage", "NoFolder", "NoImages", "NotWritten", "NameTaken"),
    ),
    "image_refinery.nodes.host": ("BadInput",),
    "image_refinery._setup": ("MissingPackages",),
    "image_refinery.texts.instructions": ("PresetError",),
    "image_refinery.jobs": ("BadInputList", "JobError", "ComfyUIError", "RunFailed"),
}
BASES = {"RefineError"}
"""Without a code: nothing raises one itself."""


def families(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    for inner in base.__subclasses__():
        yield from families(inner)


@pytest.fixture(scope="module")
def classes(comfy: None) -> dict[str, type[Any]]:
    """Every class of errors of the pack by its name; not those that tests derive."""
    found: dict[str, type[Any]] = {}
    for module, names in FAMILIES.items():
        for name in names:
            base = getattr(importlib.import_module(module), name)
            found |= {
                one.__name__: one
                for one in families(base)
                if one.__module__.startswith("image_refinery.")
            }
    return found


def test_every_error_has_a_code_of_its_own(classes: dict[str, type[Any]]) -> None:
    own = {name: one.__dict__.get("code") for name, one in classes.items() if name not in BASES}
    assert own == {name: code for code, name in CODES.items()}


def test_the_page_has_one_section_for_each_code() -> None:
    text = PAGE.read_text("utf-8")
    assert re.findall(r"^### (\S+)$", text, flags=re.MULTILINE) == list(CODES)
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        code, _, body = section.partition("\n")
        assert re.match(r"\n\*\*[A-Z\"].+\.\*\* [A-Z\"].+\n\n1\. .+", body), code


def test_the_list_of_groups_names_the_first_and_the_last() -> None:
    text = PAGE.read_text("utf-8")
    groups = re.findall(r"^\| \[(R\d+)\]\(#r\d+\) to (R\d+) ", text, flags=re.MULTILINE)
    for digit, (first, last) in enumerate(groups, 1):
        ours = [code for code in CODES if code[1] == str(digit)]
        assert (first, last) == (ours[0], ours[-1])
    assert len(groups) == 5


def test_no_message_of_a_class_without_a_code_is_raised_for_users() -> None:
    """What a node raises reaches the page: it must be an error of ours, with a code."""
    for file in (ROOT / "nodes").rglob("*.py"):
        raised = set(re.findall(r"raise (\w+Error)\(", file.read_text("utf-8")))
        ours = {"SettingsError", "CheckpointError", "NotFiniteError", "PresetError", "SplatError"}
        assert raised <= ours, file.name
