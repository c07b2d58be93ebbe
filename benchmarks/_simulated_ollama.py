"""The tests' scripted Ollama, with the speed of a real GPU: python _simulated_ollama.py SETTINGS.

SETTINGS is JSON: {"vram_bytes", "parallel", "models": [{"name", "vision", "size", "load_s",
"unload_s", "prompt_s", "token_s", "batched_token_s", "tokens"}], "port", "log"}; times in seconds.
"port" is a free one if absent. "log" is a file: a line for each answer that the server begins, with
the model and the seed, which tells the images of a job apart; the answer ends with the seed.

The server fixes the schedule of the tokens when the request arrives. So reading an image, or a
sleep that lasts a little too long, does not add to the model's time: any time beyond the sum of
these times is the client's own.
With `parallel` above 1 the server does continuous batching: prompts are processed one after
another, and each token takes `batched_token_s` while more than one request runs.
Prints its URL. It answers each line on standard input with the counts of loads and unloads.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

from _measure import from_tests

WORDS = (
    "a the of in on with small large red green blue white wooden stone old bright dark quiet lake "
    "tree hill house boat path cloud light shadow stands lies leads behind before beside under"
)


def answer(count: int) -> str:
    """Return so many tokens of one word each, always the same."""
    chosen = random.Random(count)
    return " ".join(chosen.choice(WORDS.split()) for _ in range(count))


def timed_server(settings: dict[str, Any]) -> Any:
    """Return the scripted server with the speed in `settings`."""
    faulty = from_tests("faulty_ollama.py")
    faulty.POLL_S = 0.001  # how late it notices that a model was unloaded
    log = open(settings["log"], "ab", buffering=0) if "log" in settings else None  # noqa: SIM115
    paces = {faulty.full_name(model["name"]): model for model in settings["models"]}

    def line(record: Any, text: str, *, done: bool) -> dict[str, Any]:
        return {**faulty.stamp(record), **faulty.piece(record, text, ""), "done": done}

    class Timed(faulty.FaultyOllama):
        """Sends tokens by a schedule."""

        def __init__(self, *args: Any, **fields: Any) -> None:
            super().__init__(*args, **fields)
            self._prompts = threading.Lock()
            self._prompt_ends = 0.0

        def _generate(self, exchange: Any, model: Any, mode: str, load_s: float) -> None:
            record, pace = exchange.record, paces[model.key]
            with self._prompts:
                begun = max(record.started + load_s, self._prompt_ends)
                due = self._prompt_ends = begun + pace["prompt_s"]
            tokens = faulty.split_tokens(model.answer)
            if log:
                log.write(f"{model.key} {record.options['seed']}\n".encode())
                tokens = (*tokens[:-1], f" {record.options['seed']}")
            limit = record.options.get("num_predict", -1)
            tokens = tokens[:limit] if limit > 0 else tokens
            streams = record.body.get("stream", True)
            for at, token in enumerate(tokens):
                alone = self._residents[model.key].running < 2
                due += pace["token_s" if alone else "batched_token_s"]
                if streams or at + 1 == len(tokens):
                    exchange.wait(max(0.0, due - time.monotonic()))
                if streams and at == 0:
                    exchange.start_stream()
                if streams:
                    exchange.line(line(record, token, done=False))
            done = {"done_reason": "stop", "eval_count": len(tokens)}
            if streams:
                exchange.line(line(record, "", done=True) | done)
                exchange.end_stream()
            else:
                exchange.json(line(record, "".join(tokens), done=True) | done)

    models = [
        faulty.FakeModel(
            model["name"],
            ("completion", "vision") if model["vision"] else ("completion",),
            answer=answer(model["tokens"]),
            size=model["size"],
            load_s=model["load_s"],
            unload_s=model["unload_s"],
        )
        for model in settings["models"]
    ]
    fields = {
        name: settings[name] for name in ("vram_bytes", "parallel", "port") if name in settings
    }
    return Timed(models, **fields)


def main() -> int:
    """Serve until standard input ends."""
    with timed_server(json.loads(sys.argv[1])) as server:
        print(server.url, flush=True)
        for _ in sys.stdin:
            counts = {
                "loads": server.loads,
                "unloads": server.unloads,
                "at_a_time": dict(server.peak_running),
            }
            print(json.dumps(counts), flush=True)
            server.requests.clear()  # images are large
    return 0


if __name__ == "__main__":
    sys.exit(main())
