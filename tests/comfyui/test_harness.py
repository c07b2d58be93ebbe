"""The harness itself: a graph of core nodes and probe nodes does what it should."""

import json

import pytest
from host import ComfyHost, Refused, node


def test_a_picture_goes_in_and_comes_back(comfyui: ComfyHost):
    graph = {
        "1": node("ProbePictures", pictures="[[8, 6, [1, 0, 0]], [4, 2, [0, 1, 0]]]", batch=False),
        "2": node("SaveImage", images=["1", 0], filename_prefix="harness"),
        "3": node("ProbeSame", first=["1", 0], second=["1", 0]),
    }
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert [file.suffix for file in comfyui.saved(run, "2")] == [".png", ".png"]
    assert all(file.is_file() for file in comfyui.saved(run, "2"))
    (said,) = run.texts("3")
    assert [row["same"] for row in json.loads(said)["rows"]] == [True, True]
    assert run.order[0] == "1"


def test_a_graph_that_cannot_run_is_refused_with_the_reason(comfyui: ComfyHost):
    with pytest.raises(Refused, match="prompt_no_outputs"):
        comfyui.queue({"1": node("ProbePictures", pictures="[]", batch=False)})


def test_a_sync_node_runs_while_an_async_one_waits_and_the_record_shows_it(comfyui: ComfyHost):
    """Why LLM Image Refine is synchronous; the record that its own test relies on."""
    comfyui.post("/probe/forget")
    graph = {
        "1": node("ProbeSleep", seconds=0.5, salt=1),
        "2": node("ProbeModel", seconds=0.1, salt=2),
        "3": node("PreviewAny", source=["1", 0]),
        "4": node("PreviewAny", source=["2", 0]),
    }
    run = comfyui.run(graph)
    assert run.ok, run.error
    calls = {call["name"]: call["at"] for call in comfyui.get("/probe/calls")}
    assert calls["sleep_begins"] < calls["model_begins"] < calls["model_ends"]
    assert calls["model_ends"] < calls["sleep_ends"]
