// Check Setup: a command of the menu that shows the report in a dialog, and on the node the report
// and a button that copies it. Other nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const NODE = "RefineryCheckSetup";
const COMMAND = "ImageRefinery.CheckSetup";
const COPY = "Copy report";

const style = document.createElement("style");
style.textContent = `
  .refinery-report { width: min(760px, 92vw); margin: auto; padding: 16px; border-radius: 8px;
    color: var(--fg-color, #ddd); background: var(--comfy-menu-bg, #353535);
    border: 1px solid var(--border-color, #4e4e4e); font-family: sans-serif; }
  .refinery-report::backdrop { background: rgb(0 0 0 / 50%); }
  .refinery-report h2 { margin: 0 0 8px; font-size: 16px; }
  .refinery-report p { margin: 0 0 8px; font-size: 13px; }
  .refinery-report textarea { width: 100%; height: min(60vh, 460px); box-sizing: border-box;
    resize: vertical; padding: 8px; font: 12px/1.4 monospace; color: inherit;
    background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); }
  .refinery-report footer { display: flex; gap: 8px; justify-content: flex-end; margin-top: 12px; }
  .refinery-report button { padding: 6px 14px; font-size: 13px; color: inherit; cursor: pointer;
    background: var(--comfy-input-bg, #222); border-radius: 4px;
    border: 1px solid var(--border-color, #4e4e4e); }`;
document.head.append(style);

function make(tag, text, properties) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

async function fetchReport() {
  const answer = await api.fetchApi("/image_refinery/report");
  if (!answer.ok) throw new Error(`ComfyUI answered ${answer.status}`);
  return answer.text();
}

// Over plain http from another machine a page has no clipboard: then the box copies itself.
async function copy(box) {
  try {
    await navigator.clipboard.writeText(box.value);
  } catch {
    box.select();
    document.execCommand("copy");
  }
}

async function showReport() {
  const box = make("textarea", "", { readOnly: true, value: "Checking ..." });
  const copyButton = make("button", COPY, { disabled: true });
  const close = make("button", "Close", { onclick: () => dialog.close() });
  const dialog = make("dialog", "", { className: "refinery-report" });
  const buttons = make("footer");
  buttons.append(copyButton, close);
  const about = "Holds no prompts, paths, addresses or keys. Paste it into your issue.";
  dialog.append(make("h2", "Image Refinery: Check Setup"), make("p", about), box, buttons);
  copyButton.onclick = async () => {
    await copy(box);
    copyButton.textContent = "Copied";
  };
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // no shortcuts behind it
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  try {
    box.value = await fetchReport();
    copyButton.disabled = false;
  } catch (error) {
    box.value = `The report could not be made: ${error.message}. See ComfyUI's log.`;
  }
}

app.registerExtension({
  name: "imagerefinery.checkSetup",
  commands: [
    { id: COMMAND, label: "Image Refinery: Check Setup", icon: "pi pi-info-circle", function: showReport },
  ],
  menuCommands: [{ path: ["Help"], commands: [COMMAND] }],

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const box = make("textarea", "", { readOnly: true, className: "comfy-multiline-input" });
    box.placeholder = "Shows the report after a run.";
    const shown = node.addDOMWidget("report_text", "refinery_report", box, {
      getValue: () => box.value,
      setValue: (value) => (box.value = value ?? ""),
      serialize: false,
      getMinHeight: () => 180,
    });
    const button = node.addWidget("button", COPY, null, async () => {
      box.value ||= await fetchReport();
      await copy(box);
      const detail = "The report is in the clipboard.";
      app.extensionManager.toast.add({ severity: "success", summary: node.title, detail, life: 3000 });
    });
    // Neither is an input of the node: a saved workflow holds no report.
    shown.serialize = button.serialize = false;
    button.options.serialize = false;
    node.setSize([Math.max(node.size[0], 400), Math.max(node.size[1], 320)]);

    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.text) box.value = [output.text].flat().join("\n");
    };
  },
});
