"""Take out one guard after another, in a copy of the checkout, and show that its test fails.

    python tools/remove_guards.py            all of them; exit status 1 where a test did not notice
    python tools/remove_guards.py redirect   those whose name holds this word

A guard is a piece of source that stands against something in docs/security.md or docs/faults.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(*(".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis"))
SECURITY = "tests/nodes/test_security.py"
RECOVERY = "tests/ollama_client/test_recovery.py"
CLIENT = "tests/ollama_client/test_client.py"


@dataclass(frozen=True)
class Guard:
    """A piece of source, what it becomes without the guard, and the test that must fail then."""

    name: str
    file: str
    source: str
    without: str
    test: str


GUARDS = (
    Guard(
        "a workflow names a server, never its address",
        "llm/servers.py",
        "        return _named(name, entries, environ)\n    key",
        "        return _server(name, name, None, None)\n    key",
        f"{SECURITY}::test_a_workflow_cannot_choose_an_address",
    ),
    Guard(
        "redirects are not followed",
        "llm/http.py",
        "allow_redirects=False",
        "allow_redirects=True",
        f"{SECURITY}::test_a_server_cannot_send_us_elsewhere",
    ),
    Guard(
        "a key goes over https or to this machine only",
        "llm/servers.py",
        'return self.url.startswith("https://") or self.is_loopback',
        "return True",
        f"{CLIENT}::test_a_key_goes_to_loopback_or_https_only",
    ),
    Guard(
        "credentials are dropped from an address",
        "llm/servers.py",
        'return f"{scheme}://{netloc}{path}"',
        'return f"{scheme}://{parts.netloc.rpartition(chr(64))[0]}@{netloc}{path}"',
        f"{SECURITY}::test_no_secret_reaches_a_log_a_message_or_the_page",
    ),
    Guard(
        "an address that cannot be used is not repeated",
        "llm/servers.py",
        'raise _bad_address("has a port that',
        'raise _bad_address(text + "has a port that',
        f"{SECURITY}::test_an_address_that_cannot_be_used_keeps_its_password",
    ),
    Guard(
        "material cannot close its marks",
        "captioning/prompts.py",
        'held = _CLOSING_MARK.sub(r"(\\1", material.strip())',
        "held = material.strip()",
        f"{SECURITY}::test_the_words_in_a_picture_are_data_for_the_second_model",
    ),
    Guard(
        "a server's words are shortened to one line",
        "llm/errors.py",
        "    said = shorten(said)\n    # An error line",
        "    # An error line",
        f"{SECURITY}::test_a_servers_long_answer_does_not_fill_a_message",
    ),
    Guard(
        "a line of an answer is bounded",
        "llm/http.py",
        "if held > MAX_LINE_BYTES:",
        "if held < 0:",
        "tests/nodes/test_fault_matrix.py::test_fault[chat endless_line-LLM Describe-give]",
    ),
    Guard(
        "an answer is bounded",
        "ollama_client/client.py",
        "                    elif growing.overlong:",
        "                    elif False:",
        f"{RECOVERY}::test_a_server_that_ignores_num_predict_is_cut_off",
    ),
    Guard(
        "an answer that repeats itself is ended",
        "ollama_client/client.py",
        "                    elif growing.loops:",
        "                    elif False:",
        f"{RECOVERY}::test_a_phrase_again_and_again_is_an_incomplete_answer",
    ),
    Guard(
        "silence is bounded",
        "llm/http.py",
        "            if left <= 0:",
        "            if left <= -20:",
        f"{RECOVERY}::test_silence_is_bounded_and_timeout_s_is_the_first_bytes",
    ),
    Guard(
        "tries are counted",
        "llm/retry.py",
        "return pause_s if tried < count and since_s + pause_s <= limit_s else None",
        "return pause_s if tried < 9 else None",
        f"{RECOVERY}::test_tries_are_counted",
    ),
    Guard(
        "what was shown is not asked for again",
        "ollama_client/client.py",
        "            if not growing.tokens:\n                raise\n",
        "            raise\n",
        f"{RECOVERY}::test_tokens_that_were_shown_are_never_asked_for_again",
    ),
    Guard(
        "a cancel ends a wait",
        "llm/retry.py",
        "        if cancelled is not None and cancelled():\n            raise Cancelled(place)\n",
        "",
        f"{RECOVERY}::test_cancel_ends_the_wait",
    ),
    Guard(
        "a cancel closes the connection",
        "llm/http.py",
        "            if not finished:\n                self.abort()\n",
        "",
        f"{CLIENT}::test_cancel_closes_the_connection_at_once",
    ),
    Guard(
        "connections are closed with their client",
        "llm/http.py",
        "                    pool.close()\n",
        "                    pass\n",
        "tests/nodes/test_fault_matrix.py::test_fault[tags busy-LLM Describe-stop]",
    ),
    Guard(
        "models go where the server cannot say what is loaded",
        "ollama_client/client.py",
        '            self._transport.post("/api/generate", request, cancelled)\n'
        "            raise\n",
        "            raise\n",
        "tests/nodes/test_fault_matrix.py::test_fault[ps html-LLM Describe-give]",
    ),
    Guard(
        "an empty batch asks nothing",
        "captioning/stages.py",
        "            if not all(groups):\n",
        "            if False:\n",
        f"{SECURITY}::test_an_empty_batch_asks_nothing",
    ),
    Guard(
        "arrays that are no picture are refused",
        "captioning/images.py",
        "    if 0 in array.shape:\n",
        "    if False:\n",
        f"{SECURITY}::test_shapes_that_are_no_picture_are_one_sentence",
    ),
    Guard(
        "values that are no colour become one",
        "nodes/host/convert.py",
        "                    np.nan_to_num(scaled, copy=False)\n"
        "                np.clip(scaled, 0.0, 255.0, out=scaled)\n",
        "                    pass\n",
        "tests/nodes/test_conversion_properties.py::"
        "test_odd_values_become_pixels_and_the_image_stays_as_it_was",
    ),
    Guard(
        "a picture that unpacks to gigabytes is refused",
        "files/pictures.py",
        "Image.DecompressionBombError) as error",
        "KeyError) as error",
        f"{SECURITY}::test_a_picture_that_unpacks_to_gigabytes_is_refused",
    ),
    Guard(
        "drives, devices and null bytes are no names",  # `..` is refused twice over
        "files/folders.py",
        'set(part) & {"\\0", ":"} or is_device(part)',
        "False",
        "tests/files/test_folders.py::test_names_that_lead_out_are_refused_on_every_system",
    ),
    Guard(
        "no link leads out of a folder",
        "files/folders.py",
        " or not _stays(folder, path)",
        "",
        "tests/files/test_folders.py::test_links_that_lead_out",
    ),
    Guard(
        "texts from files are bounded when they name each other",
        "texts/wildcards.py",
        "self.characters <= _MOST_CHARACTERS",
        "True",
        "tests/texts/test_wildcards.py::test_everything_ends_at_once",
    ),
    Guard(
        "pickled weights are refused",
        "refine/checkpoints.py",
        "    if path.suffix.lower() in PICKLE_SUFFIXES:\n",
        "    if False:\n",
        "tests/refine/test_loading.py::test_pickles_are_refused_unopened",
    ),
    Guard(
        "the embedded engine answers this machine's programs only",
        "llm/llamacpp/server.py",
        'if not _is_loopback(self.headers.get("Host"), self.headers.get("Origin")):',
        "if False:",
        "tests/llm/llamacpp/test_api.py::test_web_pages_cannot_reach_it",
    ),
    Guard(
        "no code is made from data",
        "texts/shown.py",
        "    if isinstance(value, str):\n        return value\n    plain",
        "    if isinstance(value, str):\n        return str(eval(value))\n    plain",
        "tests/test_security.py::test_no_code_is_made_from_data",
    ),
    Guard(
        "we add no route",
        "nodes/host/__init__.py",
        '    server = getattr(PromptServer, "instance", None)\n',
        '    server = getattr(PromptServer, "instance", None)\n    PromptServer.instance.routes\n',
        "tests/test_security.py::test_we_add_no_route_to_comfyui",
    ),
    Guard(
        "the log holds no prompt",
        "captioning/stages.py",
        "        answer = self._with_room(model, stage, chat)\n",
        "        answer = self._with_room(model, stage, chat)\n"
        '        log.info("asked %s", messages)\n',
        f"{SECURITY}::test_the_log_holds_no_prompt_no_answer_and_no_image",
    ),
)


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Run one test in a copy of the checkout."""
    start = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "-c", "tests/pytest.ini", "-q", "-x", "-p"]
    return subprocess.run(
        [*command, "no:cacheprovider", test],
        cwd=folder,
        # Else only every other combination is a test, another one after each change of the list.
        env={**os.environ, "FULL_FAULT_MATRIX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def removed(folder: Path, guard: Guard) -> str:
    """Take a guard out, run its test, put it back; return what was seen."""
    file = folder / guard.file
    text = file.read_text(encoding="utf-8")
    if text.count(guard.source) < 1:
        return "NOT FOUND: the source has changed"
    whole = run(folder, guard.test)
    if whole.returncode != 0:
        return f"FAILS ALREADY (status {whole.returncode})"
    file.write_text(text.replace(guard.source, guard.without), encoding="utf-8")
    try:
        done = run(folder, guard.test)
    except subprocess.TimeoutExpired:
        return "noticed: the test does not end"
    finally:
        file.write_text(text, encoding="utf-8")
    if done.returncode == 1:
        return "noticed"
    return f"NOT NOTICED (status {done.returncode})"


def main() -> int:
    """Copy, remove one after another, report."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = 0
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "copy"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        chosen = [guard for guard in GUARDS if word in guard.name]
        for guard in chosen:
            seen = removed(folder, guard)
            missed += not seen.startswith("noticed")
            print(f"{guard.name}: {seen}\n    {guard.file} -> {guard.test}", flush=True)
    print(f"{len(chosen)} guards taken out, {len(chosen) - missed} noticed, {missed} not.")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
