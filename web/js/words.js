// The words of a node's last run become a property of the node, so that workflows and images that
// are saved later have them too. A workflow or an image that brings words shows them on its nodes.
// Other packs' nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { LLM_NODES, STATUS } from "./find_node.js";

const KEY = "image_refinery";
const MAX_CHARS = 300;

function show(node) {
  if (node.widgets?.find((widget) => widget.name === STATUS)?.value) return; // of this page's own run
  const { refined_output, text, description } = node.properties[KEY];
  const words = [refined_output ?? text ?? description].flat().filter(Boolean).join("\n");
  if (!words) return;
  const end = words.length > MAX_CHARS ? " ..." : "";
  const shown = `Recorded words:\n${words.slice(0, MAX_CHARS)}${end}`;
  api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: shown });
}

app.registerExtension({
  name: "imagerefinery.words",

  nodeCreated(node) {
    if (!LLM_NODES.includes(node.comfyClass)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.words) node.properties[KEY] = output.words[0];
    };

    // Workflows that ComfyUI 0.3.64 saved may have a status here, which would count as true.
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      const use = node.widgets?.find((widget) => widget.name === "use_recorded_words");
      if (use && typeof use.value !== "boolean") use.value = false;
    };
  },

  loadedGraphNode(node) {
    if (LLM_NODES.includes(node.comfyClass) && node.properties[KEY]) setTimeout(() => show(node));
  },
});
