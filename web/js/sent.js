// "Show What Was Sent" in the context menu of the nodes that ask a language model. Other nodes are
// left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { findNode } from "./find_node.js";

const NODES = ["RefineryLLMImageRefine", "RefineryLLMDescribe", "RefineryOllamaProcess"];
const NOT_RUN = "Run the node first. ComfyUI does not run a node again whose inputs are unchanged.";
const NOTHING = "Nothing was sent: the last run used kept answers, or ended before its first request.";
const texts = new WeakMap(); // what each node sent in its last run

const style = document.createElement("style");
style.textContent = `
  .refinery-sent { width: min(800px, 90vw); padding: 16px; border-radius: 8px; box-shadow: none;
    border: 1px solid var(--border-color); background: var(--comfy-menu-bg); color: var(--fg-color); }
  .refinery-sent::backdrop { background: rgb(0 0 0 / 50%); }
  .refinery-sent h3 { margin: 0 0 12px; font-size: 16px; }
  .refinery-sent textarea { width: 100%; height: 60vh; box-sizing: border-box; padding: 8px; resize: none;
    border: 1px solid var(--border-color); background: var(--comfy-input-bg); color: var(--input-text);
    font: 12px/1.5 monospace; }
  .refinery-sent footer { display: flex; justify-content: flex-end; gap: 8px; margin-top: 12px; }
  .refinery-sent button { padding: 6px 14px; border: 1px solid var(--border-color); border-radius: 4px;
    background: var(--comfy-input-bg); color: var(--input-text); cursor: pointer; }`;
document.head.append(style);

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function show(node) {
  const value = texts.has(node) ? texts.get(node) || NOTHING : NOT_RUN;
  const box = make("textarea", { value, readOnly: true });
  const copy = make("button", {
    textContent: "Copy",
    onclick() {
      // navigator.clipboard is missing where ComfyUI is reached over http from another machine.
      box.select();
      if (document.execCommand("copy")) copy.textContent = "Copied";
    },
  });
  const close = make("button", { textContent: "Close", onclick: () => dialog.close() });
  const title = make("h3", { textContent: `What was sent: ${node.title}` });
  const dialog = make("dialog", { className: "refinery-sent", onclose: () => dialog.remove() });
  dialog.append(title, box, make("footer", {}, copy, close));
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // R would refresh the page's nodes
  document.body.append(dialog);
  dialog.showModal();
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
    if (!NODES.includes(node.comfyClass)) return;
    const options = node.getExtraMenuOptions;
    node.getExtraMenuOptions = function (canvas, menu) {
      const more = options?.apply(this, arguments);
      menu.push({ content: "Show What Was Sent", callback: () => show(node) });
      return more;
    };
  },
});
