"""The process that holds one model: llama.cpp's own HTTP server on a loopback port.

Runs as a script, with one JSON line on stdin. It is a process because llama.cpp's loader holds the
interpreter's lock and cannot be stopped: ending the process cancels a load and unloads a model. It
is a script because multiprocessing would import the main module of the host program (ComfyUI)
again.

It prints one JSON line, {"listening": URL}, when the model is loaded, logs to stderr, and ends when
stdin closes, which means that the parent process has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from typing import Any


def main() -> None:
    """Load the model given on stdin, and serve it until stdin closes."""
    # A module of this folder must not shadow one that llama.cpp's binding imports.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    settings = json.loads(sys.stdin.buffer.readline())
    _die_with_parent_while_loading()
    # By name: it has no stubs for pyright, and is optional.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    # After the import: on Windows a blocked read of stdin can block the loading of a library.
    threading.Thread(target=_end_when_stdin_closes, daemon=True).start()
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, settings))
    except RuntimeError as error:
        # llama.cpp has logged the reason; the exception only says that the load failed.
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        sys.exit(1)  # not os._exit: at an ordinary end llama.cpp's log writes what it still has
    sys.stdout.write(json.dumps({"listening": server.listening_address}) + "\n")
    sys.stdout.flush()
    threading.Event().wait()


def _parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    if settings["mmproj"]:
        parameters.mmproj.path = settings["mmproj"]
    parameters.model_alias = {settings["alias"]}
    parameters.n_parallel = settings["num_parallel"]
    parameters.n_ctx = settings["num_ctx"] * settings["num_parallel"]  # shared out equally
    if settings["num_gpu"] is not None:
        parameters.n_gpu_layers = settings["num_gpu"]
        parameters.mmproj_use_gpu = settings["num_gpu"] > 0
    if settings["num_batch"] is not None:
        parameters.n_batch = settings["num_batch"]
        parameters.n_ubatch = min(parameters.n_ubatch, settings["num_batch"])
    if settings["num_thread"] is not None:
        parameters.cpuparams.n_threads = settings["num_thread"]
        parameters.cpuparams_batch.n_threads = settings["num_thread"]
    if not settings["use_mmap"]:
        parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.offline = True
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [settings["api_key"]]
    parameters.cors_origins = ""
    parameters.ui = False
    # A partly cached prompt is computed in other batches, so that the same seed could give a
    # different text. Also, copies of prompts would take up to 8 GB of RAM.
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    parameters.verbosity = 4  # the lowest level that reports the sizes of the buffers
    return parameters


def _end_when_stdin_closes() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def _die_with_parent_while_loading() -> None:
    """Let the kernel end this process when stdin closes: none of our threads runs during a load.

    Linux only: elsewhere the signal is ignored by default, or missing, and an orphaned process
    finishes loading before it ends.
    """
    if sys.platform == "linux":
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
