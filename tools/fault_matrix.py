"""Run every fault of every family of servers with all that asks one, and print the results.

python tools/fault_matrix.py            prints the tables; exit status 1 if a case failed
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
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "faults.md"
FAMILIES = {
    "test_ollama_faults": "Ollama",
    "test_openai_faults": "Servers with OpenAI's API",
    "test_engine_faults": "The embedded engine",
}
USERS = (
    *("LLM Image Refine", "LLM Describe", "Ollama Process", "Describe Tiles", "Caption Folder"),
    *("batch", "Free Memory", "Check Setup"),
)
KINDS = ("router", "llama-server", "lmstudio", "llama-swap", "vllm", "openai")
WITHOUT_MODEL = USERS[6:]
FIRST_MODE = "output error text"

INTRO = """# Faults

What happens when a server fails? `python tools/fault_matrix.py --write` wrote this page. It runs
`tests/nodes/test_*_faults.py`: a scripted Ollama and six kinds of scripted servers with OpenAI's
API, on real sockets, and the embedded engine, with llama.cpp and tiny models. Each fails at one
kind of request for the whole run. The columns are the nodes that ask a server, and the command
`batch`. A dash means that a node does not make the request. A case passes if

- the error has the right class, and the message is one line with the expected content (for a
  harmless fault: if the texts are right);
- the image, or the file, is unchanged;
- no thread, connection, file descriptor or temporary file is left, and no model that the run has
  loaded stays loaded (if Ollama refuses to unload: if the model was loaded for only five minutes);
- it took less than 30 s, with time-outs shortened to 0.4 s;
- the next run, on a working server, returns the right texts.

Nodes with `on_error` run each fault with both of its values. *Caption Folder* and `batch` work on
two images: the first has its answers before a chat fails, and the next run must ask only for what
is missing. *Free Memory* must pass its value on, and *Check Setup* must report the problem.

The first column has the kind of request that fails. The faults have the names of `FAULTS` in
`tests/faulty_ollama.py` and `tests/scripted_servers.py`, and of `tests/fault_cases.py`. The
messages are those of the first column of the row that has one, with the server's own words in
quotation marks.

"""
SCREENSHOTS = """`make test` runs a part of the cases: each fault with at least one column.
In a real ComfyUI, `tests/comfyui` and `tests/browser/test_faults.py` do the same for one node and
each kind of fault. The page if no server is running, if Ollama is out of memory, and during a retry
because the server is busy:

![Can't reach Ollama](images/fault-refused.png)
![Out of memory](images/fault-oom.png)
![Retrying](images/fault-busy-second-try.png)
"""
OF_OPENAI = """Where the six kinds behave alike, they take turns: each row meets several, and each
column meets all. Where they differ, every kind that the row names ran with every column. `router`
is llama-server in router mode, and `openai` any other server with OpenAI's API.
"""
OF_ENGINE = """A worker process runs each model. It is killed as the system does when memory is
short (`killed`), ended as by a crash (`terminated`), or stopped (`hang`). `chat killed_before`
kills it after its load or its last answer, and the engine starts another.
"""
NOTES = {"Servers with OpenAI's API": OF_OPENAI, "The embedded engine": OF_ENGINE}


@dataclass
class Row:
    """A fault: which cases of it passed, and the message.

    Attributes:
        passed: by the column.
        kinds: the kinds of servers, by the column.
    """

    passed: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    kinds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    messages: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Return a mark for each column."""
        return [
            ("pass" if all(self.passed[user]) else "FAIL") if user in self.passed else "-"
            for user in USERS
        ]

    def message(self) -> str:
        """Return what the user reads."""
        for user in USERS:
            if text := self.messages.get(user):
                text = text.replace("|", "\\|").replace("<", "&lt;")
                return f"{user}: {text}" if user in WITHOUT_MODEL else text
        return "(the right texts)"

    def servers(self) -> str:
        """Return which kinds of servers the row has met."""
        met = set[str]().union(*self.kinds.values())
        if max(map(len, self.kinds.values())) < len(met):
            return "in turns"
        return "all six" if met == set(KINDS) else ", ".join(kind for kind in KINDS if kind in met)


def run() -> tuple[ElementTree.Element, float, int]:
    """Run the tests; return their report, how long they took in seconds, and the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Not `-m pytest`, which puts the checkout on sys.path, where its `nodes` must never be.
        start = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "-c", "tests/pytest.ini", "-q", "-p"]
        command += ["no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        command += [f"tests/nodes/{name}.py" for name in FAMILIES]
        begun = time.monotonic()
        everything = os.environ | {"FULL_FAULT_MATRIX": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=everything, stdout=subprocess.DEVNULL, check=False
        )
        return ElementTree.parse(report).getroot(), time.monotonic() - begun, done.returncode


def collect(report: ElementTree.Element) -> dict[str, dict[tuple[str, str], Row]]:
    """Return the rows by their family, and by request and fault."""
    families: dict[str, dict[tuple[str, str], Row]] = {title: {} for title in FAMILIES.values()}
    for case in report.iter("testcase"):
        said = {entry.get("name"): entry.get("value", "") for entry in case.iter("property")}
        if "fault" not in said:
            continue
        family = FAMILIES[case.get("classname", "").rpartition(".")[2]]
        row = families[family].setdefault((said["at"], said["fault"]), Row())
        good = case.find("failure") is None and case.find("error") is None
        user = said["user"]
        row.passed[user].append(good)
        row.kinds[user].add(said["kind"])
        if "said" in said and said["mode"] == FIRST_MODE:
            row.messages.setdefault(user, said["said"])
    return families


def table(rows: dict[tuple[str, str], Row], *, kinds: bool) -> list[str]:
    """Return the lines of a family's table in Markdown."""
    users = [
        place for place, user in enumerate(USERS) if any(user in r.passed for r in rows.values())
    ]
    heads = ["at", "fault", *(["servers"] if kinds else []), *(USERS[place] for place in users)]
    lines = [f"| {' | '.join([*heads, 'what the user reads'])} |"]
    lines.append("| --- " * (len(heads) + 1) + "|")
    for (at, fault), row in rows.items():
        cells = row.cells()
        marks = [*([row.servers()] if kinds else []), *(cells[place] for place in users)]
        lines.append(f"| {' | '.join([at, f'`{fault}`', *marks, row.message()])} |")
    return lines


def main() -> int:
    """Run the cases, print the tables, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/quality/faults.md")
    options = parser.parse_args()
    report, seconds, status = run()
    families = collect(report)
    counts: dict[str, list[bool]] = {}
    parts: list[str] = []
    for title, rows in families.items():
        passed = [good for row in rows.values() for cases in row.passed.values() for good in cases]
        counts[title] = passed
        parts += [f"## {title}", "", *([NOTES[title]] if title in NOTES else [])]
        parts += [f"{len(rows)} faults, {len(passed)} cases, {sum(passed)} passed.", ""]
        parts += [*table(rows, kinds=title == FAMILIES["test_openai_faults"]), ""]
    everything = [good for passed in counts.values() for good in passed]
    slowest = max(float(case.get("time", 0)) for case in report.iter("testcase"))
    summary = (
        f"{len(everything):,} cases on {date.today()}: {sum(everything):,} passed, "
        f"{len(everything) - sum(everything)} failed, none hung. The slowest took {slowest:.1f} s "
        f"with its setup, all of them {seconds / 60:.0f} minutes."
    )
    tables = "\n".join(parts)
    if options.write:
        PAGE.write_text(f"{INTRO}{summary}\n\n{SCREENSHOTS}\n{tables}", encoding="utf-8")
    print(tables, summary, sep="\n")
    return 0 if status == 0 and everything and all(everything) else 1


if __name__ == "__main__":
    sys.exit(main())
