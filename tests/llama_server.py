"""llama.cpp's own server with one real model, for tests of what is not emulated."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from image_refinery.llm.llamacpp import worker
from image_refinery.llm.llamacpp.process import LoadOptions


@contextmanager
def llama_server(
    python: Path, file: Path, mmproj: Path | None, alias: str, num_ctx: int, log: Path
) -> Iterator[str]:
    """Serve one model; the API needs the key "a-key", and the program writes to `log`."""
    settings = {
        "model": str(file),
        "mmproj": str(mmproj) if mmproj else None,
        "alias": alias,
        "api_key": "a-key",
        **asdict(LoadOptions(num_ctx, num_gpu=0, num_thread=1)),
    }
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(python), str(worker.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())["listening"]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
