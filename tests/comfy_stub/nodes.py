"""The way in which the rest of ComfyUI asks a run to stop."""

import comfy.model_management


def before_node_execution() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def interrupt_processing(value: bool = True) -> None:
    comfy.model_management.interrupt_current_processing(value)
