"""Check Setup: what is installed, which servers and models are here, and the last errors."""

from __future__ import annotations

from comfy_api.latest import io

from ..llm.errors import Cancelled
from . import host


class CheckSetup(io.ComfyNode):
    """The report of `image-refinery doctor`, from inside ComfyUI (web/js/check_setup.js)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """No input: it runs alone in a graph."""
        return host.schema(
            node_id="RefineryCheckSetup",
            display_name="Check Setup",
            category="Image Refinery/Utilities",
            description=(
                "Checks packages, GPU, servers, models and checkpoints, and reports what is "
                "missing. The report holds nothing private, so you can post it."
            ),
            search_aliases=["doctor", "diagnose", "debug", "report", "help", "error", "support"],
            is_output_node=True,
            inputs=[],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="Versions, GPU, servers, models, problems and the last errors. No "
                    "prompts, paths, addresses, keys or names of people.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Never the same: a server may have been started since."""
        return float("nan")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Check, show what to do on the node, and output the report."""
        from .._setup import report
        from .host.setup import check

        try:
            sections = check(host.interrupted)
        except Cancelled:
            host.stop()
        problems = [problem.text for section in sections for problem in section.problems]
        host.show(host.node_id(cls), *(problems or ["Everything needed is here."]))
        text = report(sections)
        return io.NodeOutput(text, ui={"text": [text]})
