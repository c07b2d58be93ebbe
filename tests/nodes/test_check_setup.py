"""Check Setup over the stub: what the report holds, and above all what it does not."""

from __future__ import annotations

import asyncio
import getpass
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import _setup

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

SECRETS = {
    "login": "loginname",
    "password": "hunter22",
    "a key of the environment": "sk-env-0123456789abcdef",
    "a key of the file": "sk-file-0123456789abcdef",
    "a name of the file": "alices-workstation",
    "a host of the file": "box.internal.example",
    "an address of the file": "10.20.30.40",
    "the user": "alice-the-user",
    "the host": "alices-laptop",
    "a folder": "my-private-folder",
    "a prompt": "a secret birthday party",
}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.check_setup import CheckSetup
    from image_refinery.nodes.host import recent_errors

    recent_errors.clear()
    return CheckSetup


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ollama: FaultyOllama) -> Path:
    """A setup full of what nobody may read; its config file."""
    from faulty_ollama import text_model

    home = tmp_path / SECRETS["the user"]
    home.mkdir()
    config = home / "image-refinery.toml"
    config.write_text(
        f"""
        [servers.{SECRETS["a name of the file"]}]
        kind = "openai"
        url = "http://{SECRETS["a host of the file"]}:8000"
        api_key = "{SECRETS["a key of the file"]}"
        [servers.other]
        kind = "banana {SECRETS["a folder"]}"
        url = "http://{SECRETS["an address of the file"]}:9"
        """
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("OLLAMA_API_KEY", SECRETS["a key of the environment"])
    login = "//" + ":".join((SECRETS["login"], SECRETS["password"])) + "@"
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url.replace("//", login))
    monkeypatch.setenv(
        "IMAGE_REFINERY_REFINER", str(home / SECRETS["a folder"] / "gone.safetensors")
    )
    monkeypatch.setattr(getpass, "getuser", lambda: SECRETS["the user"])
    monkeypatch.setattr(platform, "node", lambda: SECRETS["the host"])
    for name in (
        str(home / SECRETS["a folder"] / "model.gguf"),
        f"{SECRETS['the user']}/own:7b",
        f"pulled-from-{SECRETS['the host']}:1b @ http://{SECRETS['a host of the file']}/x",
    ):
        ollama.models[name] = text_model(name)
    return config


def test_the_report_has_what_helps(node: Any, ollama: FaultyOllama) -> None:
    output = node.execute()
    (text,) = output.result
    assert output.ui == {"text": [text]}
    for words in (
        "Image Refinery 0.",
        "ComfyUI 0.3.64",
        "Device: cpu, 8.59 GB of 17.2 GB free, VRAM state NORMAL_VRAM",
        f"Python {platform.python_version()} on {platform.system()}",
        "  torch ",
        "Server default: Ollama ",
        "  llava:latest: completion, vision",
        "  llama3.2:latest: ",
        "Problems:\n  none",
        "Last errors:\n  none",
    ):
        assert words in text, text
    assert node.fingerprint_inputs() != node.fingerprint_inputs(), "it always runs"


def test_a_problem_has_its_code_and_what_to_do(node: Any, ollama: FaultyOllama) -> None:
    del ollama.models["llava:latest"]
    (text,) = node.execute().result
    problems = text.partition("Problems:\n")[2]
    assert problems.startswith("  R202 NoModel. Download one, for example with: ollama pull llava")


def test_the_report_gives_away_nothing(
    node: Any, private: Path, monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama
) -> None:
    from image_refinery.nodes.host import setup

    monkeypatch.setattr(setup, "config_file", lambda: private)
    fail(SECRETS["a prompt"])
    (text,) = node.execute().result
    for what, secret in SECRETS.items():
        assert secret.lower() not in text.lower(), f"{what}:\n{text}"
    for sign in ("://", str(Path.home()), "127.0.0.1"):
        assert sign not in text, f"{sign}:\n{text}"
    assert text.count("not usable") == 2 and "R110 ServerConfigError" in text
    assert "  model.gguf:latest: " in text and ".../own:7b: " in text, text


def test_the_command_line_s_report_gives_away_nothing(
    private: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from image_refinery.cli.main import main

    monkeypatch.setattr(_setup, "config_path", lambda: private)
    assert main(["doctor", "--report"]) == 1
    text = capsys.readouterr().out
    for what, secret in SECRETS.items():
        assert secret.lower() not in text.lower(), f"{what}:\n{text}"
    assert "R403 CheckpointError" in text and "://" not in text and str(Path.home()) not in text


def fail(prompt: str) -> None:
    """Let a node fail with an error that quotes all that it can."""
    from image_refinery.nodes.ollama_options import OllamaOptions
    from image_refinery.nodes.save_caption import SaveCaption

    with pytest.raises(ValueError, match=r"\(R502\)$"):
        SaveCaption.execute(
            name=[f"/home/{SECRETS['the user']}/{prompt}.png"], text=[prompt], place=["input"]
        )
    with pytest.raises(ValueError, match=r"\(R501\)$"):
        OllamaOptions.execute(format=prompt)


def test_the_last_ten_errors_are_kept_without_their_words(node: Any) -> None:
    from image_refinery.nodes.host import recent_errors

    for _ in range(6):
        fail("a prompt")
    assert len(recent_errors) == 10
    (text,) = node.execute().result
    lines = text.partition("Last errors:\n")[2].partition("Problems:")[0].splitlines()
    assert len(lines) == 10 and lines[-1].endswith(" R501 BadInput (OllamaOptions)")
    assert lines[-2].endswith(" R502 OutsideFolder (SaveCaption)")


def test_errors_of_every_kind_of_node_are_kept(
    node: Any, monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama
) -> None:
    import torch
    from image_refinery.nodes.free_memory import FreeMemory
    from image_refinery.nodes.host import recent_errors
    from image_refinery.nodes.llm_describe import LLMDescribe
    from image_refinery.nodes.load_folder import LoadImagesFromFolder
    from image_refinery.nodes.sdxl_refiner import SDXLRefiner

    image = torch.rand(1, 8, 8, 3)
    LLMDescribe.execute(image=[image.repeat(3, 1, 1, 1)], vision_model=["nobody"])
    with pytest.raises(Exception, match=r"\(R201\)$"):
        LLMDescribe.execute(image=[image], vision_model=["nobody"], on_error=["stop the workflow"])
    with pytest.raises(Exception, match=r"\(R504\)$"):
        LoadImagesFromFolder.execute(folder="gone")
    checkpoint = ["gone.safetensors"]
    SDXLRefiner.execute(image=[image], checkpoint=checkpoint, on_error=["return original image"])
    with pytest.raises(Exception, match=r"\(R403\)$"):
        SDXLRefiner.execute(image=[image], checkpoint=checkpoint, on_error=["stop the workflow"])
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    said = FreeMemory.execute(image, False, False, True).ui["text"][0]
    assert said.endswith("(R101)")
    kept = [(one.code, one.node) for one in recent_errors]
    assert kept == [
        ("R201", "LLMDescribe"),
        ("R201", "LLMDescribe"),
        ("R504", "LoadImagesFromFolder"),
        ("R403", "SDXLRefiner"),
        ("R403", "SDXLRefiner"),
        ("R101", "FreeMemory"),
    ]


def test_a_cancel_ends_the_check(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        node.execute()
    assert not management.processing_interrupted()


def test_the_page_s_route_takes_nothing_and_blocks_nothing(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes.host import setup
    from server import PromptServer

    setup.add_report_route()
    handler = PromptServer.instance.handlers[setup.REPORT_PATH]
    threads: list[str] = []

    class Web:
        @staticmethod
        def Response(text: str) -> str:  # noqa: N802
            return text

    def check() -> list[Any]:
        import threading

        threads.append(threading.current_thread().name)
        return []

    import sys
    import types

    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=Web))
    monkeypatch.setattr(setup, "check", check)
    text = asyncio.run(handler(None))
    assert text.startswith("Image Refinery ") and threads != ["MainThread"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("C:\\Users\\Max Muster\\models\\x.gguf", "x.gguf"),
        ("read C:\\Users\\Max Muster\\x and more", "read ..."),
        ("see \\\\nas\\share\\x", "see ..."),
        ("/data/My Models/x y.gguf", "x y.gguf"),
        ("failed at /data/My Models/x", "failed at ..."),
        ("open ~/x", "open ..."),
        ("at http://me:pw@box:11434/api", "at ..."),
        ("at box.example.org:11434 or localhost:80", "at ... or ..."),
        ("at 192.168.1.7:11434, [fe80::1]", "at ..., [...]"),
        ("mail me@example.org", "mail ..."),
        ("key sk-abcdefghijkl", "key ..."),
        ("key 0123456789abcdef0123456789abcdef", "key ..."),
        ("qwen2.5vl:7b-instruct-q4_K_M", "qwen2.5vl:7b-instruct-q4_K_M"),
        ("hf.co/unsloth/gemma-3-4b-it-GGUF:Q4_K_M", "hf.co/unsloth/gemma-3-4b-it-GGUF:Q4_K_M"),
        ("Raise num_ctx and/or num_predict.", "Raise num_ctx and/or num_predict."),
        ("completion, vision", "completion, vision"),
    ],
)
def test_what_is_scrubbed(text: str, safe: str) -> None:
    assert _setup.scrub(text) == safe
