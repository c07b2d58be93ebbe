// "Show What Was Sent" in the context menu of the nodes that ask a language model. Other nodes are
// left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { showText } from "./dialog.js";
import { LLM_NODES, findNode } from "./find_node.js";

const NOT_RUN = "Run the node first. ComfyUI does not run a node again whose inputs are unchanged.";
const NOTHING = "Nothing was sent: the last run used kept answers, or ended before its first request.";
const texts = new WeakMap(); // what each node sent in its last run

function show(node) {
  const value = texts.has(node) ? texts.get(node) || NOTHING : NOT_RUN;
  showText({ title: `What was sent: ${node.title}`, value });
}

app.registerExtension({
  name: "imagerefinery.sent",

  setup() {
    api.addEventListener("imagerefinery.sent", ({ detail }) => {
      const node = findNode(detail.node);
      if (node) texts.set(node, detail.text);
    });
  },

  nodeCreated(node) {
    if (!LLM_NODES.includes(node.comfyClass)) return;
    const options = node.getExtraMenuOptions;
    node.getExtraMenuOptions = function (canvas, menu) {
      const more = options?.apply(this, arguments);
      menu.push({ content: "Show What Was Sent", callback: () => show(node) });
      return more;
    };
  },
});
