// A dialog with a text to read and to copy.
import { app } from "../../../scripts/app.js";

addStyle(`
  .refinery-dialog { width: min(800px, 92vw); margin: auto; padding: 16px; border-radius: 8px;
    pointer-events: auto; color: var(--fg-color, #ddd); background: var(--comfy-menu-bg, #353535);
    border: 1px solid var(--border-color, #4e4e4e); font-family: sans-serif; font-size: 13px; }
  .refinery-dialog::backdrop { background: rgb(0 0 0 / 50%); }
  .refinery-dialog h2 { margin: 0 0 8px; font-size: 16px; }
  .refinery-dialog p { margin: 0 0 8px; }
  .refinery-dialog textarea { width: 100%; height: 60vh; box-sizing: border-box; padding: 8px;
    resize: vertical; font: 12px/1.4 monospace; color: inherit;
    background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); }
  .refinery-dialog footer { display: flex; gap: 8px; justify-content: flex-end; margin-top: 12px; }
  .refinery-dialog button { padding: 6px 14px; color: inherit; cursor: pointer; border-radius: 4px;
    background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); }`);

// Adds no element to the page, which all packs share.
export function addStyle(rules) {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(rules);
  document.adoptedStyleSheets.push(sheet);
}

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Over plain http from another machine a page has no clipboard: then the box copies itself.
export async function copy(box) {
  try {
    await navigator.clipboard.writeText(box.value);
  } catch {
    box.select();
    document.execCommand("copy");
  }
}

// Returns the text box and the button, for a text that comes later.
export function showText({ title, about = "", value, copyLabel = "Copy" }) {
  const box = make("textarea", { value, readOnly: true });
  const copyButton = make("button", {
    textContent: copyLabel,
    async onclick() {
      await copy(box);
      copyButton.textContent = "Copied";
    },
  });
  const close = make("button", { textContent: "Close", onclick: () => dialog.close() });
  const dialog = make("dialog", { className: "refinery-dialog", onclose: () => dialog.remove() });
  const heading = [make("h2", { textContent: title })];
  if (about) heading.push(make("p", { textContent: about }));
  dialog.append(...heading, box, make("footer", {}, copyButton, close));
  for (const kind of ["keydown", "pointerdown", "wheel", "paste"]) {
    dialog.addEventListener(kind, (event) => event.stopPropagation()); // none for the graph
  }
  app.canvas.canvas.parentElement.append(dialog);
  dialog.showModal();
  return { box, copyButton };
}
