"""The soak: each node has a case, what is measured, the checks of a job, and the page."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama
    from soak_batch import BatchJob

SOAK = Path(__file__).resolve().parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    """tools/soak.py."""
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cases(comfy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """soak_cases and soak_batch can be imported."""
    monkeypatch.syspath_prepend(SOAK.parent)
    monkeypatch.syspath_prepend(SOAK.parents[1] / "tests")  # for drawn_splats


def test_a_process_is_a_new_one_and_may_be_killed(tool: Any) -> None:
    assert tool.call_in_process(os.getpid) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        tool.call_in_process(os._exit, 9)


def test_a_killed_process_is_a_sentence_and_a_failure(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(tool, "call_in_process", killed)
    monkeypatch.setattr(sys, "argv", ["soak", "--runs", "1", "--only", "Free Memory"])
    assert tool.main() == 1
    assert capsys.readouterr().out.startswith("Free Memory: its process was killed")


@pytest.mark.usefixtures("cases")
def test_each_node_has_a_case_or_a_reason(tool: Any) -> None:
    import soak_cases

    soak_cases.check_cases(tool.LEFT_OUT)
    assert set(tool.NODES) == set(soak_cases.CASES)
    assert set(tool.COMMANDS) == set(soak_cases.COMMANDS)
    with pytest.raises(AssertionError, match="Refine with Model"):
        soak_cases.check_cases(())


def test_the_page_tells_how_often_and_what_did_not_run(tool: Any) -> None:
    figures = tool.Figures(50, 250.0, 600_000, 2, 0, 11, 3, 0.0)
    one = tool.Soaked([figures, figures], Counter(answer=50), ["a fault"], 0.0, 0, 1.0)
    command = replace(one, images=5, about="each run adds 5 images.")
    text = tool.page({"Save Caption": one, "batch": command}, 50)
    assert "Each row of the table is 50 runs" in text
    assert "| Save Caption | 250.0 to 250.0 |" in text and "| 11 to 11 | 3 to 3 |" in text
    assert "| batch, 250 images | 250.0" in text and "\nbatch: each run adds 5 images.\n" in text
    assert "Refine with Model, because it needs ComfyUI's own sampler" in text


def test_temporary_files_are_those_of_the_process_and_unfinished_ones(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tool.own_temporary_folder(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "result.png").write_bytes(b"")
    assert tool.count_temporary() == 0
    (tmp_path / "output" / "result.new").write_bytes(b"")
    assert tool.count_temporary() == 1
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a").write_bytes(b"")
        assert tool.count_temporary() == 3


@pytest.mark.usefixtures("cases")
def test_lists_of_installed_packages_are_not_growth(
    ollama: FaultyOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soak_cases

    def blocks() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    monkeypatch.setattr(soak_cases, "place_checkpoints", lambda: None)
    case = soak_cases.check_setup(ollama)
    monkeypatch.syspath_prepend(tmp_path)
    case.rest()
    before = blocks()
    for second in range(60):
        os.utime(tmp_path, (second, second))
        metadata.version("requests")
    grown = blocks() - before
    case.rest()
    assert blocks() - before < grown / 4


@pytest.fixture
def job(
    cases: None, ollama: FaultyOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BatchJob:
    """A job of `batch`; ten images are all."""
    import soak_batch

    monkeypatch.setattr(soak_batch, "IMAGES_PER_JOB", 10)
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return soak_batch.BatchJob(tmp_path, ollama.forget_script)


WITHOUT_ERROR = (
    "a damaged file of kept answers",
    "half a row, as after a power cut",
    "a caption that was deleted",
)


def test_a_job_is_whole_after_each_fault(job: BatchJob, tmp_path: Path) -> None:
    chance = random.Random(0)
    for name, fault in job.faults().items():
        assert job.call(job.options(chance)) == "answer"
        job.after()
        options = job.options(chance) | fault(chance)
        assert job.call(options) == ("answer" if name in WITHOUT_ERROR else "error message"), name
        job.after()
        assert not list((tmp_path / "images").iterdir()), "a new job begins"


def write_row_again(top: Path) -> None:
    (rows,) = top.glob("job/rows/*.jsonl")
    with rows.open("a") as file:
        file.write(rows.read_text("utf-8").splitlines()[0] + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_row_again, "a result, or with two"),
        (lambda top: (top / "images" / "003.txt").write_text("mine"), r"003\.txt differs"),
        (lambda top: (top / "images" / "notes.md").write_text("mine"), "a foreign file"),
    ],
)
def test_a_job_that_is_not_whole_ends_the_soak(
    job: BatchJob, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    chance = random.Random(0)
    assert [job.call(job.options(chance)) for _ in range(2)] == ["answer", "answer"]
    spoil(tmp_path)
    with pytest.raises(AssertionError, match=message):
        job.after()
