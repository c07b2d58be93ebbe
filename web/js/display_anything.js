// Display Anything: what was shown stands in the node's own text field, where it can be edited and
// is saved with the workflow. Other nodes are left alone.
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

    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (hold.value || !output?.text) return;
      held.value = [output.text].flat().join("\n");
      app.canvas?.setDirty(true);
    };
  },
});
