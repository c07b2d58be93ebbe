"""The stub does what it claims; tests/comfyui/test_stub.py holds it against a real ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _node(inputs, outputs):
    from comfy_api.latest import io

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Example", inputs=inputs, outputs=outputs)

        @classmethod
        def execute(cls, **kwargs):
            return io.NodeOutput(cls.hidden.unique_id)

    return Node


def test_an_output_with_the_id_of_an_input_is_refused_as_in_0_3_64():
    from comfy_api.latest import io

    node = _node([io.Image.Input("image")], [io.Image.Output("image")])
    with pytest.raises(ValueError, match="inputs and outputs"):
        node.GET_SCHEMA()


def test_a_combo_that_takes_a_linked_string_looks_as_on_the_wire():
    from comfy_api.latest import io

    model = io.MultiType.Input(
        io.Combo.Input("model", options=["a", "b"], default="b", optional=True), [io.String]
    )
    node = _node([io.Image.Input("image"), model], [io.String.Output(display_name="text")])
    types = node.INPUT_TYPES()
    assert types["required"] == {"image": ("IMAGE", {})}
    kind, options = types["optional"]["model"]
    assert kind == "COMBO,STRING"
    assert options["options"] == ["a", "b"] and options["default"] == "b"


def test_the_run_s_hidden_inputs_are_on_the_clone_only():
    from comfy_api.latest import io

    node = _node([], [io.String.Output()])
    node.GET_SCHEMA()
    clone = node.stub_clone({io.Hidden.unique_id: "7"})
    assert clone.execute()[0] == "7"
    assert node.hidden is None


def test_an_interrupt_is_seen_once_by_the_one_that_throws():
    import comfy.model_management as management

    management.interrupt_current_processing()
    assert management.processing_interrupted()
    with pytest.raises(management.InterruptProcessingException):
        management.throw_exception_if_processing_interrupted()
    assert not management.processing_interrupted()


def test_the_progress_bar_ends_at_its_total():
    import comfy.utils

    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda *args, node_id: seen.append((*args, node_id)))
    try:
        comfy.utils.ProgressBar(3, node_id="5").update(9)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen == [(3, 3, None, "5")]


def test_the_stub_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    code = "import folder_paths; print(folder_paths.get_input_directory())"
    environment = os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    stub = Path(__file__).resolve().parents[1] / "comfy_stub"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=stub, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 and Path(run.stdout.strip()).is_relative_to(tmp_path), run.stderr
    assert list(tmp_path.iterdir()) == []
