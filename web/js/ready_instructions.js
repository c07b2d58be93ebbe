// Prompt Presets: picking a name puts its text into the field below. Other nodes are left alone.
import { app } from "../../../scripts/app.js";

const NODE = "RefineryReadyInstructions";
let texts = {};

function learn(def) {
  texts = def?.input?.required?.pick?.[1]?.texts ?? texts;
}

app.registerExtension({
  name: "imagerefinery.readyInstructions",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === NODE) learn(nodeData);
  },

  // R reads the files again.
  refreshComboInNodes(defs) {
    learn(defs[NODE]);
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const pick = node.widgets?.find((widget) => widget.name === "pick");
    const text = node.widgets?.find((widget) => widget.name === "text");
    if (!pick || !text) return;

    const before = pick.callback;
    pick.callback = function (value) {
      before?.apply(this, arguments);
      // A workflow that is being loaded brings a text of its own, perhaps edited.
      if (app.configuringGraph || texts[value] === undefined) return;
      text.value = texts[value];
      app.canvas?.setDirty(true);
    };
  },
});
