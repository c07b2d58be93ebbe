// What the page does not do by itself for nodes of this pack. Other packs' nodes are left alone.
import { app } from "../../../scripts/app.js";

const OURS = /^Refinery/;

function* nodesOf(graph) {
  yield* graph?.nodes ?? graph?._nodes ?? [];
  for (const inner of graph?.subgraphs?.values() ?? []) {
    yield* inner.nodes ?? [];
  }
}

// "Swap Nodes" puts a node into the graph without calling its onAdded, which shows its text boxes:
// without this they stay invisible until the workflow is opened again.
function addedWhenSwapped(node) {
  const onAdded = node.onAdded;
  let added = false;
  node.onAdded = function (...args) {
    added = true;
    return onAdded?.apply(this, args);
  };
  setTimeout(() => {
    if (!added && node.graph) node.onAdded(node.graph);
  });
}

app.registerExtension({
  name: "imagerefinery.models",

  // R asks every extension. ComfyUI up to 0.3.64 refreshes only inputs of the type "COMBO", and
  // a model's name can also be linked ("COMBO,STRING").
  refreshComboInNodes(defs) {
    for (const node of nodesOf(app.rootGraph ?? app.graph)) {
      const inputs = OURS.test(node.type) ? defs[node.type]?.input : undefined;
      for (const [name, spec] of Object.entries({ ...inputs?.required, ...inputs?.optional })) {
        const names = spec[1]?.options;
        const widget = node.widgets?.find((candidate) => candidate.name === name);
        if (widget?.options && Array.isArray(names)) {
          widget.options.values = names;
        }
      }
    }
  },

  // A seed that changes by itself would ask the models again in every run, so it starts "fixed".
  // (The schema could say so, but some pages take that word for the widget's name.) This is called
  // before a saved workflow's values are put in, so those stay.
  nodeCreated(node) {
    if (!OURS.test(node.comfyClass ?? "")) return;
    const control = node.widgets?.find((widget) => widget.name === "control_after_generate");
    if (control) control.value = "fixed";
    addedWhenSwapped(node);
  },
});
