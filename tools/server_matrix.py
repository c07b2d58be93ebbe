"""Run LLM Image Refine on every kind of server in real ComfyUIs, and print a table of the results.

python tools/server_matrix.py [COMFYUI ...]   prints the page; exit status 1 if a case failed
python tools/server_matrix.py --write         writes docs/quality/servers.md as well

Give the folders of the ComfyUIs, each with its virtual environment (default: COMFYUI_PATH, else
~/comfy/ComfyUI).
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "servers.md"
SERVERS = {
    "ollama": "Ollama",
    "llama-server": "llama-server, one model",
    "router": "llama-server, router mode",
    "lmstudio": "LM Studio",
    "llama-swap": "llama-swap",
    "vllm": "vLLM",
    "openai": "other OpenAI-compatible",
    "embedded": "embedded engine",
}

INTRO = """# Servers

Written by `python tools/server_matrix.py --write`, which runs `tests/comfyui/test_servers.py`: the
same graph with LLM Image Refine in a real ComfyUI, on each kind of server. llama-server with one
model and the embedded engine are real llama.cpp, with the stand-in models toy-vision and SmolLM2
135M. The others are scripted (`tests/faulty_ollama.py`, `tests/scripted_servers.py`).

- **A batch of eight, two models.** Eight images of different colors, or drawn scenes for llama.cpp.
  Each description must name its image's color, or color, shape and place. llama-server and vLLM
  have one model each, so the text model is on a second one (`name @ server`).
- **Cancel.** Seconds from Cancel until the page learns that the run has ended, at most 1. A load
  continues for one more second after the cancel. Then nothing that the run loaded may stay loaded,
  and the next run must give the right texts.
- *Nothing left*: no model that the run loaded stays loaded.
- **Two nodes.** ComfyUI runs one node at a time. Here two nodes of one graph and one of the next
  prompt share the models in one embedded engine.
- **The basic template** is queued unchanged, without a variable or image-refinery.toml. Only LM
  Studio runs. No text, message on the node, or line of ComfyUI's log may contain the word Ollama.
"""


@dataclass
class Case:
    """One test on one server."""

    result: str
    measured: str = ""
    said: str = ""

    @property
    def cell(self) -> str:
        """The result as it appears in the table."""
        return self.measured if self.result == "pass" else self.result


@dataclass
class Report:
    """One host, and the result of each test by name and parameter."""

    host: str
    seconds: float
    cases: dict[tuple[str, str], Case] = field(default_factory=dict[tuple[str, str], Case])


def run(comfyui: Path | None) -> Report:
    """Run the tests in one ComfyUI."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.xml"
        # Not `-m pytest`, which puts the checkout on sys.path, where its `nodes` must never be.
        start = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "-c", "tests/pytest.ini", "-q", "-n0", "-p"]
        command += ["no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={file}"]
        command += ["tests/comfyui/test_servers.py"]
        where = {} if comfyui is None else {"COMFYUI_PATH": str(comfyui)}
        environment = {**os.environ, **where}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        begun = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        return read(ElementTree.parse(file).getroot(), time.monotonic() - begun)


def read(root: ElementTree.Element, seconds: float) -> Report:
    """Return the results in a report of pytest."""
    host = properties(root.find("testsuite")).get("host", "no ComfyUI")
    report = Report(host, seconds)
    for case in root.iter("testcase"):
        name, _, parameter = case.get("name", "").removeprefix("test_").partition("[")
        result = "pass"
        if (skipped := case.find("skipped")) is not None:
            result = f"not run: {skipped.get('message', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            result = "FAIL"
        reported = properties(case)
        found = Case(result, reported.get("measured", ""), reported.get("said", ""))
        report.cases[name, parameter.rstrip("]")] = found
    return report


def properties(element: ElementTree.Element | None) -> dict[str, str]:
    """Return the properties of a test, or of all tests."""
    found = [] if element is None else element.findall("properties/property")
    return {entry.get("name", ""): entry.get("value", "") for entry in found}


def title(name: str) -> str:
    """
    >>> title("a_killed_comfyui")
    'A killed ComfyUI'
    """
    words = name.replace("_", " ").replace("comfyui", "ComfyUI").replace("lm studio", "LM Studio")
    return words[:1].upper() + words[1:]


def row(*cells: str) -> str:
    """Return one line of a table."""
    escaped = (re.sub(r"\n", "<br>", cell.replace("|", "\\|")) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def page(reports: list[Report]) -> str:
    """Return the page."""
    lines = [INTRO, f"Last run: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}."]
    for report in reports:
        cases = list(report.cases.values())
        passed = sum(case.result == "pass" for case in cases)
        failed = sum(case.result == "FAIL" for case in cases)
        skipped = len(cases) - passed - failed
        lines += ["", f"## {report.host}", ""]
        lines += [
            f"{len(cases)} cases, {passed} passed, {failed} failed, {skipped} not run, in "
            f"{report.seconds:.0f} s.",
            "",
            row("case", *SERVERS.values()),
            row(*["---"] * (len(SERVERS) + 1)),
        ]
        names = dict.fromkeys(name for name, server in report.cases if server in SERVERS)
        for name in names:
            found = (report.cases.get((name, server)) for server in SERVERS)
            lines.append(row(title(name), *(case.cell if case else "" for case in found)))
    lines += ["", "## One server in detail", ""]
    lines += [row("case", *(report.host.partition(",")[0] for report in reports))]
    lines += [row(*["---"] * (len(reports) + 1))]
    single = [key for report in reports for key in report.cases if key[1] not in SERVERS]
    for name, parameter in dict.fromkeys(single):
        cells = (report.cases.get((name, parameter)) for report in reports)
        whole = f"{title(name)} ({parameter})" if parameter else title(name)
        lines.append(row(whole, *(case.cell if case else "" for case in cells)))
    lines += ["", "## What the user reads", "", row("case", "server", "message")]
    lines.append(row("---", "---", "---"))
    messages = [
        (title(name), SERVERS.get(parameter, ""), case.said)
        for report in reports
        for (name, parameter), case in report.cases.items()
        if case.said
    ]
    lines += [row(*message) for message in dict.fromkeys(messages)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cases, print the page, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", nargs="*", type=Path, help="folders of ComfyUIs")
    parser.add_argument("--write", action="store_true", help="write docs/quality/servers.md")
    options = parser.parse_args()
    reports = [run(comfyui) for comfyui in options.comfyui or [None]]
    text = page(reports)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)
    results = [case.result for report in reports for case in report.cases.values()]
    return 0 if results and "FAIL" not in results else 1


if __name__ == "__main__":
    sys.exit(main())
