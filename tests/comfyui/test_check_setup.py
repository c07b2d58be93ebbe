"""Check Setup in a real ComfyUI: as a node alone in a graph, and by the page's route."""

from __future__ import annotations

from pathlib import Path

import requests
from faulty_ollama import FaultyOllama
from host import ComfyHost, node

ROUTE = "/image_refinery/report"


def test_it_runs_alone_and_says_what_is_here(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    graph = {"1": node("RefineryCheckSetup"), "2": node("RefineryOllamaOptions", format="{")}
    graph["3"] = node("RefineryOllamaProcess", text="x", instructions="y", text_model="llama3.2",
                      options=["2", 0])  # fmt: skip
    graph["4"] = node("RefineryDisplayAnything", hold=False, held_text="", value=["3", 0])
    failed = comfyui.run({key: graph[key] for key in "234"})
    assert not failed.ok and "(R501)" in str(failed.error)
    run = comfyui.run({"1": graph["1"]})
    assert run.ok, run.error
    (text,) = run.texts("1")
    version = ".".join(map(str, comfyui.found.version))
    for words in (
        f"ComfyUI {version}",
        "Device: ",
        "  llava:latest: completion, vision",
        "Problems:\n",
        " R501 BadInput (OllamaOptions)",
    ):
        assert words in text, text
    ollama.models.clear()
    (text,) = comfyui.run({"1": graph["1"]}).texts("1")
    assert "R202 NoModel" in text, "it is never cached"


def test_the_route_has_the_same_report_and_no_secret(
    comfyui: ComfyHost, ollama: FaultyOllama
) -> None:
    text = requests.get(f"{comfyui.url}{ROUTE}", timeout=60).text
    (shown,) = comfyui.run({"1": node("RefineryCheckSetup")}).texts("1")
    free = " free, "  # the memory that is free differs from moment to moment
    lines = [[line for line in one.splitlines() if free not in line] for one in (text, shown)]
    assert lines[0] == lines[1] and len(lines[0]) > 20
    for private in ("://", "127.0.0.1", str(Path.home()), str(comfyui.base), "custom_nodes"):
        assert private not in text, text


def test_the_route_is_not_for_other_pages(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    origin = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    answer = requests.get(f"{comfyui.url}{ROUTE}", headers=origin, timeout=60)
    assert answer.status_code == 403
    assert requests.post(f"{comfyui.url}{ROUTE}", timeout=60).status_code == 405
