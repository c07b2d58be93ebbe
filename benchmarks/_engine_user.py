"""Measure one way to run a model with llama.cpp, in a separate process.

    python _engine_user.py '{"way": "engine", "root": CHECKOUT, "at_a_time": 2, ...}'

Prints the figures as one line of JSON. "root" is the checkout to measure: an older one has a
different engine.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

MODEL, OTHER = "smollm2:135m", "toy-vision:latest"
PROMPT = "Write a long story about a lake."
REQUESTS = 4
"""The total, however many of them run at a time."""
_MEMORY = re.compile(r"^(VmRSS|RssAnon):\s+(\d+) kB", re.MULTILINE)


class Way(Protocol):
    """How models are loaded, used and unloaded."""

    def load(self, model: str) -> None:
        """Load a model and wait for that."""
        ...

    def unload(self, model: str) -> None:
        """Unload a model and wait for that."""
        ...

    def chat(self) -> int:
        """Request one answer; return its number of tokens."""
        ...

    def pid(self) -> int:
        """Return the id of the process that holds the model."""
        ...

    def close(self) -> None:
        """Stop the processes."""
        ...


class Engine:
    """The embedded engine, as nodes use it."""

    def __init__(self, options: dict[str, Any], at_a_time: int) -> None:
        module: Any = import_module("image_refinery.llm.llamacpp.backend")
        self._collect: Any = import_module("image_refinery.llm.backend").collect
        self._engine = module.EmbeddedEngine()
        self._options = options
        self._at_a_time = at_a_time

    def load(self, model: str) -> None:
        self._engine.load(model, options=self._options, parallel=self._at_a_time)

    def unload(self, model: str) -> None:
        assert self._engine.unload(model).confirmed

    def chat(self) -> int:
        messages = [{"role": "user", "content": PROMPT}]
        answer = self._collect(self._engine.chat(MODEL, messages, options=self._options))
        return answer.answer_tokens

    def pid(self) -> int:
        return self._engine.registry.loaded()[0][2].pid

    def close(self) -> None:
        self._engine.registry.close()


class Version01:
    """The engine of version 0.1: a loopback server with Ollama's API, used through OllamaClient."""

    def __init__(self, options: dict[str, Any], at_a_time: int) -> None:
        client: Any = import_module("image_refinery.ollama_client")
        self._server: Any = import_module("image_refinery.llm.llamacpp").EmbeddedServer()
        self._client = client.OllamaClient(client.Server(url=self._server.url))
        self._collect = client.collect
        self._options = options

    def load(self, model: str) -> None:
        self._client.load(model, options=self._options)

    def unload(self, model: str) -> None:
        self._client.unload(model)

    def chat(self) -> int:
        messages = [{"role": "user", "content": PROMPT}]
        answer = self._collect(self._client.chat(MODEL, messages, options=self._options))
        return answer.answer_tokens

    def pid(self) -> int:
        return self._server.worker_pids()[0]

    def close(self) -> None:
        self._client.close()
        self._server.close()


class LlamaServer:
    """llama.cpp's own server with the engine's parameters and slots, used over plain HTTP."""

    def __init__(self, options: dict[str, Any], at_a_time: int) -> None:
        self._process: Any = import_module("image_refinery.llm.llamacpp.process")
        self._library: Any = import_module("image_refinery.llm.llamacpp.library").Library()
        self._requests: Any = import_module("requests")
        self._options = options
        self._at_a_time = at_a_time
        self._worker: Any = None

    def load(self, model: str) -> None:
        named = {name: self._options[name] for name in ("num_ctx", "num_thread")}
        load_options = self._process.LoadOptions(**named, num_parallel=self._at_a_time)
        self._worker = self._process.Worker(self._library.find(model), load_options)
        while not self._worker.is_ready(1.0):
            pass

    def unload(self, model: str) -> None:
        self._worker.kill()
        self._worker.wait_until_gone()

    def chat(self) -> int:
        body = {
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": self._options["num_predict"],
            "temperature": self._options["temperature"],
            "seed": self._options["seed"],
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        server = self._worker.server
        with self._requests.post(
            f"{server.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {server.api_key}"},
            stream=True,
            timeout=600,
        ) as response:
            response.raise_for_status()
            lines = [line[5:] for line in response.iter_lines() if line.startswith(b"data:")]
        events = [json.loads(line) for line in lines if line.strip() != b"[DONE]"]
        [tokens] = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
        return tokens

    def pid(self) -> int:
        return self._worker.pid

    def close(self) -> None:
        self._worker.kill()
        self._worker.wait_until_gone()


WAYS: dict[str, Callable[[dict[str, Any], int], Way]] = {
    "engine": Engine,
    "version 0.1": Version01,
    "llama.cpp server": LlamaServer,
}


def load_package(root: Path) -> None:
    """Import a checkout as image_refinery, even if another one is installed."""
    name, file = "image_refinery", root / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def time_call(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_tokens_per_s(way: Way, at_a_time: int) -> float:
    """Return the tokens per second of all requests together, `at_a_time` running in parallel."""
    counts: list[int] = []
    ready = threading.Barrier(at_a_time + 1)

    def user() -> None:
        ready.wait()
        for _ in range(REQUESTS // at_a_time):
            counts.append(way.chat())

    threads = [threading.Thread(target=user) for _ in range(at_a_time)]
    for thread in threads:
        thread.start()
    ready.wait()
    taken_s = time_call(lambda: [thread.join() for thread in threads])
    assert len(counts) == REQUESTS, "a request failed"
    return sum(counts) / taken_s


def memory_mib(pid: int) -> dict[str, float] | None:
    """Return a process's RSS, and the part of it without mapped files, in MiB; None: not Linux."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return None
    found = {name: int(kib) / 1024 for name, kib in _MEMORY.findall(status.read_text())}
    return {"rss": found["VmRSS"], "anonymous": found["RssAnon"]}


def main() -> None:
    """Measure one way."""
    settings = json.loads(sys.argv[1])
    load_package(Path(settings["root"]))
    options = {
        "num_ctx": 1024,
        "num_thread": settings["threads"],
        "num_predict": settings["tokens"],
        "temperature": 0,
        "seed": 1,
    }
    way = WAYS[settings["way"]](options, settings["at_a_time"])
    try:
        way.load(OTHER)  # warm: modules are imported
        way.unload(OTHER)
        load_s = time_call(lambda: way.load(MODEL))
        way.chat()
        tokens_per_s = measure_tokens_per_s(way, settings["at_a_time"])
        memory = memory_mib(way.pid())

        def swap() -> None:
            way.unload(MODEL)
            way.load(OTHER)
            way.unload(OTHER)
            way.load(MODEL)

        result = {"load_s": load_s, "swap_s": time_call(swap) / 2, "tokens_per_s": tokens_per_s}
        print(json.dumps(result | {"memory_mib": memory}))
    finally:
        way.close()


if __name__ == "__main__":
    main()
