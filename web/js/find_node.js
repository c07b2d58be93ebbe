// The nodes on the page: which ask a model, what shows their status, and where a run's node is.
import { app } from "../../../scripts/app.js";

export const LLM_NODES = [
  "RefineryLLMImageRefine",
  "RefineryLLMDescribe",
  "RefineryDescribeTiles",
  "RefineryOllamaProcess",
];
export const STATUS = "$$node-text-preview"; // the widget into which ComfyUI puts a node's status

export function openGraph() {
  return app.rootGraph ?? app.graph;
}

// The id of a run's node is "5", or "12:5" for node 5 in the subgraph node 12.
export function findNode(id) {
  let graph = openGraph();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}
