// Check Setup: a command of the menu that shows the report in a dialog, and on the node the report
// and a button that copies it. Other nodes are left alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { copy, make, showText } from "./dialog.js";

const NODE = "RefineryCheckSetup";
const COMMAND = "ImageRefinery.CheckSetup";
const COPY = "Copy report";

async function fetchReport() {
  const answer = await api.fetchApi("/image_refinery/report");
  if (!answer.ok) throw new Error(`ComfyUI answered ${answer.status}`);
  return answer.text();
}

async function showReport() {
  const { box, copyButton } = showText({
    title: "Image Refinery: Check Setup",
    about: "Holds no prompts, paths, addresses or keys. Paste it into your issue.",
    value: "Checking ...",
    copyLabel: COPY,
  });
  copyButton.disabled = true;
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
    const box = make("textarea", { readOnly: true, className: "comfy-multiline-input" });
    box.placeholder = "Shows the report after a run.";
    const shown = node.addDOMWidget("report_text", "refinery_report", box, {
      getValue: () => box.value,
      setValue: (value) => (box.value = value ?? ""),
      serialize: false,
      getMinHeight: () => 180,
    });
    const button = node.addWidget("button", COPY, null, async () => {
      const tell = (severity, detail) =>
        app.extensionManager.toast.add({ severity, summary: node.title, detail, life: 5000 });
      try {
        box.value ||= await fetchReport();
        await copy(box);
        tell("success", "The report is in the clipboard.");
      } catch (error) {
        tell("error", `The report could not be made: ${error.message}.`);
      }
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
