// Display Anything: a run puts its text into the node's own text field, where it can be edited.
// Other nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const NODE = "RefineryDisplayAnything";
let updated = new WeakSet(); // nodes that show a text of the present run

app.registerExtension({
  name: "imagerefinery.displayAnything",

  setup() {
    api.addEventListener("execution_start", () => (updated = new WeakSet()));
    // After a run that ended early, a text of the run before would look like its result.
    for (const end of ["execution_interrupted", "execution_error"]) {
      api.addEventListener(end, () => {
        for (const node of app.graph.nodes) {
          if (node.comfyClass === NODE && !updated.has(node)) node.clearShown?.();
        }
      });
    }
  },

  // The page remembers outputs over a change of workflows and an undo.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = app.graph?.getNodeById(id);
      if (node?.comfyClass === NODE) node.showAgain?.(output);
    }
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const hold = node.widgets?.find((widget) => widget.name === "hold");
    const held = node.widgets?.find((widget) => widget.name === "held_text");
    if (!hold || !held) return;

    // Only a text that is held is part of a run. Else a text that was merely shown would make the
    // next run differ from this one, and everything behind the node would run again.
    held.serializeValue = () => (hold.value ? held.value : "");

    let shown;
    function show(text) {
      held.value = shown = text;
      app.canvas?.setDirty(true);
    }

    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      updated.add(node);
      if (!hold.value && output?.text) show([output.text].flat().join("\n"));
    };
    node.clearShown = () => !hold.value && held.value === shown && show("");
    node.showAgain = (output) => held.value === "" && node.onExecuted(output);

    // A saved workflow, and a PNG, which carries the workflow as it was before its run, would show
    // the text of another run. What is held, or was typed since the run, is saved.
    const serialized = node.onSerialize;
    node.onSerialize = function (data) {
      serialized?.apply(this, arguments);
      if (hold.value || held.value !== shown || !data.widgets_values) return;
      data.widgets_values[node.widgets.indexOf(held)] = "";
      if (data.widgets_values_named) data.widgets_values_named[held.name] = ""; // newer pages
    };
  },
});
