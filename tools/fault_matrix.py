"""Run every fault with three nodes that use Ollama, and print a table of the results.

python tools/fault_matrix.py            prints the table; exit status 1 if a case failed
python tools/fault_matrix.py --write    writes docs/quality/faults.md as well
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "faults.md"
NODES = ("LLM Image Refine", "LLM Describe", "Ollama Process")
MODES = ("give", "stop")

INTRO = """# Faults

Written by `python tools/fault_matrix.py --write`, which runs `tests/nodes/test_fault_matrix.py`: a
scripted Ollama (`tests/faulty_ollama.py`) on a real socket fails at one kind of request for the
whole run. Each fault is run with the three nodes of the table, once with `on_error` "output error
text" and once with "stop the workflow". A case passes if

- the error has the right class, and the message is one line with the expected beginning and content
  (for a harmless fault: if the texts are right);
- the output image is the same object as the input image, with unchanged pixels;
- no thread, connection, file descriptor or temporary file is left, and no model stays loaded (if
  the server refuses to unload: if the model was loaded for only five minutes);
- it took less than 30 s, with time-outs shortened to 0.4 s;
- the next run, on a working server, returns the right texts.

The names of the faults are those in `FAULTS` of `tests/faulty_ollama.py`. The first column has the
kind of request that fails. `server restarts_once` resets a connection once, before the first token.
The messages are those of the first node in the row, with the server's own words in quotation marks.

`make test` runs half of the cases (each fault with each node). This table has all of them. In a
real ComfyUI, `tests/comfyui` and `tests/browser/test_faults.py` do the same for one node and each
kind of fault. The page if no server is running, if Ollama is out of memory, and during a retry
because the server is busy:

![Can't reach Ollama](images/fault-refused.png)
![Out of memory](images/fault-oom.png)
![Retrying](images/fault-busy-second-try.png)

"""


def run() -> tuple[ElementTree.Element, float]:
    """Run the tests; return their report and how long they took, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Not `-m pytest`, which puts the checkout on sys.path, where its `nodes` must never be.
        start = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "-c", "tests/pytest.ini", "-q", "-p"]
        command += ["no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        command += ["tests/nodes/test_fault_matrix.py"]
        begun = time.monotonic()
        everything = os.environ | {"FULL_FAULT_MATRIX": "1"}
        subprocess.run(command, cwd=ROOT, env=everything, stdout=subprocess.DEVNULL, check=False)
        return ElementTree.parse(report).getroot(), time.monotonic() - begun


def collect(
    report: ElementTree.Element,
) -> tuple[dict[str, dict[tuple[str, str], bool]], dict[str, str]]:
    """Return the cases that passed, by fault and (node, on_error), and each fault's message."""
    passed: dict[str, dict[tuple[str, str], bool]] = defaultdict(dict)
    messages: dict[str, str] = {}
    for case in report.iter("testcase"):
        name = case.get("name", "")
        if "[" not in name:
            continue
        fault, node, mode = name[name.index("[") + 1 : -1].split("-")
        good = case.find("failure") is None and case.find("error") is None
        passed[fault][node, mode] = passed[fault].get((node, mode), True) and good
        for entry in case.iter("property"):
            if entry.get("name") == "said" and mode == "give":
                messages.setdefault(fault, entry.get("value", ""))
    return passed, messages


def marks(row: dict[tuple[str, str], bool], node: str) -> str:
    """Return "pass" if both values of on_error passed."""
    words = {True: "pass", False: "FAIL", None: "not run"}
    seen = [words[row.get((node, mode))] for mode in MODES]
    return seen[0] if seen[0] == seen[1] else " / ".join(seen)


def table(passed: dict[str, dict[tuple[str, str], bool]], messages: dict[str, str]) -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = ["| at | fault | " + " | ".join(NODES) + " | what the user reads |"]
    lines.append("| --- | --- |" + " --- |" * (len(NODES) + 1))
    for fault, row in passed.items():
        kind, _, name = fault.partition(" ")
        text = messages.get(fault, "(the right texts)").replace("|", "\\|").replace("<", "&lt;")
        cells = [kind, f"`{name}`", *(marks(row, node) for node in NODES), text]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Run the cases, print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/quality/faults.md")
    options = parser.parse_args()
    report, seconds = run()
    passed, messages = collect(report)
    cases = [good for row in passed.values() for good in row.values()]
    slowest = max(float(case.get("time", 0)) for case in report.iter("testcase"))
    summary = (
        f"{len(passed)} faults x {len(NODES)} nodes x {len(MODES)} values of on_error: "
        f"{len(cases)} cases, {sum(cases)} passed, {len(cases) - sum(cases)} failed, none hung; "
        f"the slowest took {slowest:.1f} s with its setup, all of them {seconds:.0f} s."
    )
    lines = table(passed, messages)
    if options.write:
        PAGE.write_text(INTRO + summary + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), summary, sep="\n\n")
    return 0 if cases and all(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
