// What a node of this pack shows of its run: room for its status, and a red frame where a message
// took the place of a result. Other packs' nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle } from "./dialog.js";
import { STATUS } from "./find_node.js";

const MAX_BOX = 90; // a text box that is higher may give some of its height to the status
const seen = new WeakSet();
const failed = new Set(); // nodes of the last run with a red frame

addStyle(".refinery-status .break-all { word-break: normal; overflow-wrap: anywhere; }");

// ComfyUI gives the status two lines, and takes them from the text boxes. With these heights it
// makes the node higher instead.
function makeRoom(node, status) {
  for (const box of seen.has(node) ? [] : (node.widgets ?? [])) {
    const input = node.inputs?.find((one) => one.widget?.name === box.name);
    if (box.element?.tagName !== "TEXTAREA" || input?.link || !box.computedHeight) continue;
    const height = Math.min(box.computedHeight, MAX_BOX);
    box.options.getMinHeight = () => height;
  }
  seen.add(node);
  // Else ComfyUI 0.3.64 saves it among the values, and may put it into another widget on opening.
  status.serialize = false;
  status.props = { ...status.props, class: "refinery-status" };
  status.options.getMinHeight = status.options.getMaxHeight = () => {
    const perLine = (node.size[0] - 60) / 6;
    const lines = String(status.value ?? "").split("\n");
    const count = lines.reduce((sum, line) => sum + Math.ceil((line.length || 1) / perLine), 0);
    return 36 + 16 * Math.min(count, 11);
  };
}

function setFrame(node, on) {
  node.has_errors = on;
  // Nodes 2.0 hears of it by this.
  const change = { nodeId: node.id, property: "has_errors", newValue: on };
  node.graph?.trigger?.("node:property:changed", change);
  app.canvas?.setDirty(true);
}

app.registerExtension({
  name: "imagerefinery.status",

  setup() {
    api.addEventListener("execution_start", () => {
      for (const node of failed) setFrame(node, false);
      failed.clear();
    });
  },

  nodeCreated(node) {
    if (!/^Refinery/.test(node.comfyClass ?? "")) return;

    const add = node.addCustomWidget;
    node.addCustomWidget = function (widget) {
      if (widget.name === STATUS) makeRoom(node, widget);
      return add.apply(this, arguments);
    };

    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (!output?.failed) return;
      failed.add(node);
      setFrame(node, true);
      const detail = output.failed.join("\n");
      app.extensionManager.toast.add({ severity: "error", summary: node.title, detail, life: 10_000 });
    };
  },
});
