"""The embedded engine's worker process, with BENCH_SLOTS slots instead of one.

Each slot has the num_ctx that the engine's single slot has.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parents[1] / "llm" / "llamacpp" / "worker.py"


def main() -> None:
    """Serve the model like the engine's own worker script."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    slots = int(os.environ["BENCH_SLOTS"])
    usual = worker._parameters

    def parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
        chosen = usual(xllamacpp, settings | {"num_ctx": slots * settings["num_ctx"]})
        chosen.n_parallel = slots
        return chosen

    worker._parameters = parameters
    worker.main()


if __name__ == "__main__":
    main()
