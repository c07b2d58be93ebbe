// Display Anything: a run puts its text into the node's own text field, where it can be edited.
// Other nodes are left alone.
import { app } from "../../../scripts/app.js";

const NODE = "RefineryDisplayAnything";

app.registerExtension({
  name: "imagerefinery.displayAnything",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const hold = node.widgets?.find((widget) => widget.name === "hold");
    const held = node.widgets?.find((widget) => widget.name === "held_text");
    if (!hold || !held) return;

    // Only a text that is held is part of a run. Else a text that was merely shown would make the
    // next run differ from this one, and everything behind the node would run again.
    held.serializeValue = () => (hold.value ? held.value : "");

    let shown;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (hold.value || !output?.text) return;
      held.value = shown = [output.text].flat().join("\n");
      app.canvas?.setDirty(true);
    };

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
