// After a reload of the page, nodes of this pack show again what they showed: their status, what
// they sent, and Display Anything its text. Only this tab of the browser keeps it, and nothing
// that is saved has it. Other packs' nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { findNode, openGraph } from "./find_node.js";

const KEY = "imagerefinery.shown";
const NO_ID = "00000000-0000-0000-0000-000000000000"; // a cleared workflow, until it is loaded again
const MAX_WORKFLOWS = 8;

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

const before = read(); // of the page before the reload, by workflow: each is shown once
const shown = read(); // and what came since

function keep(type, id, detail) {
  const node = findNode(id);
  if (!/^Refinery/.test(node?.comfyClass ?? "")) return;
  const { id: workflow } = openGraph();
  const entries = shown[workflow] ?? {};
  entries[`${type} ${id}`] = { type, id, detail, nodeType: node.comfyClass };
  delete shown[workflow]; // so that it becomes the last
  shown[workflow] = entries;
}

function write() {
  for (const old of Object.keys(shown).slice(0, -MAX_WORKFLOWS)) delete shown[old];
  try {
    sessionStorage.setItem(KEY, JSON.stringify(shown));
  } catch {
    sessionStorage.removeItem(KEY); // too much for the browser
  }
}

app.registerExtension({
  name: "imagerefinery.afterReload",

  setup() {
    api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
      keep("progress_text", nodeId, { nodeId, text });
    });
    api.addEventListener("imagerefinery.sent", ({ detail }) => {
      keep("imagerefinery.sent", detail.node, detail);
    });
    api.addEventListener("executed", ({ detail: { display_node, node, output } }) => {
      const id = display_node ?? node;
      if (output?.text && findNode(id)?.showAgain) keep("executed", id, { text: output.text });
    });
    // Not before: a status such as "describing" would stay if its run ended during the reload.
    for (const end of ["execution_success", "execution_interrupted", "execution_error"]) {
      api.addEventListener(end, write);
    }
  },

  afterConfigureGraph() {
    const { id: workflow } = openGraph();
    const from = before[workflow] ? workflow : NO_ID;
    const entries = before[from];
    if (!entries) return;
    delete before[from];
    delete shown[from];
    shown[workflow] = entries; // it has got an id
    write();
    for (const { type, id, detail, nodeType } of Object.values(entries)) {
      const node = findNode(id);
      if (node?.comfyClass !== nodeType) continue;
      if (type === "executed") node.showAgain(detail);
      else api.dispatchCustomEvent(type, detail);
    }
  },
});
