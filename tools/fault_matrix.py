"""Run every fault in every node that talks to Ollama, and print what became of it as a table.

python tools/fault_matrix.py            prints the table; exit status 1 where a case failed
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
scripted Ollama (`tests/faulty_ollama.py`) on a real socket does something wrong at one kind of
request, for as long as the run lasts. Each fault meets each node that talks to Ollama, once with
`on_error` "give the message" and once with "stop the workflow". A case passes when

- the error is of the right class, the message is one line that begins as it must and says what it
  must (where the fault is harmless: when the texts are right);
- the image that comes out is the very same object, its pixels unchanged;
- no thread, connection, file descriptor or temporary file is left, and no model stays loaded (where
  the server refuses to unload: where the model was loaded for five minutes only);
- it took less than 30 s, time-outs shortened to 0.4 s;
- the next run, on a server that behaves, gives the right texts.

Faults are named as in `FAULTS` of `tests/faulty_ollama.py`; the column before says at which request
they happen. `server restarts_once` is a connection that is reset before the first token, once.
Messages are those of the first node in the row; what the server said stands in them in quotation
marks.

`make test` runs half of the cases (each fault in each node); this table is all of them. In a real
ComfyUI `tests/comfyui` and `tests/browser/test_faults.py` do the same for one node and each kind of
fault. What the page shows when nothing listens, when Ollama has no memory, and while a busy server
is asked again:

![Can't reach Ollama](images/fault-refused.png)
![Out of memory](images/fault-oom.png)
![A second try](images/fault-busy-second-try.png)

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
    """Return what passed, by fault and by (node, on_error), and what each fault says."""
    passed: dict[str, dict[tuple[str, str], bool]] = defaultdict(dict)
    said: dict[str, str] = {}
    for case in report.iter("testcase"):
        name = case.get("name", "")
        if "[" not in name:
            continue
        fault, node, mode = name[name.index("[") + 1 : -1].split("-")
        good = case.find("failure") is None and case.find("error") is None
        passed[fault][node, mode] = passed[fault].get((node, mode), True) and good
        for entry in case.iter("property"):
            if entry.get("name") == "said" and mode == "give":
                said.setdefault(fault, entry.get("value", ""))
    return passed, said


def marks(row: dict[tuple[str, str], bool], node: str) -> str:
    """Return "pass" where both values of on_error passed."""
    words = {True: "pass", False: "FAIL", None: "not run"}
    seen = [words[row.get((node, mode))] for mode in MODES]
    return seen[0] if seen[0] == seen[1] else " / ".join(seen)


def table(passed: dict[str, dict[tuple[str, str], bool]], said: dict[str, str]) -> list[str]:
    """Return the table in Markdown, line by line."""
    lines = ["| at | fault | " + " | ".join(NODES) + " | what the user reads |"]
    lines.append("| --- | --- |" + " --- |" * (len(NODES) + 1))
    for fault, row in passed.items():
        kind, _, name = fault.partition(" ")
        text = said.get(fault, "(the right texts)").replace("|", "\\|").replace("<", "&lt;")
        cells = [kind, f"`{name}`", *(marks(row, node) for node in NODES), text]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/quality/faults.md")
    options = parser.parse_args()
    report, seconds = run()
    passed, said = collect(report)
    cases = [good for row in passed.values() for good in row.values()]
    slowest = max(float(case.get("time", 0)) for case in report.iter("testcase"))
    summary = (
        f"{len(passed)} faults x {len(NODES)} nodes x {len(MODES)} values of on_error: "
        f"{len(cases)} cases, {sum(cases)} passed, {len(cases) - sum(cases)} failed, none hung; "
        f"the slowest took {slowest:.1f} s with its set-up, all together {seconds:.0f} s."
    )
    lines = table(passed, said)
    if options.write:
        PAGE.write_text(INTRO + summary + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), summary, sep="\n\n")
    return 0 if cases and all(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
