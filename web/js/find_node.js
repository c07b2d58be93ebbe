// Where a run's node is on the page. Its id is "5", or "12:5" for node 5 in the subgraph node 12.
import { app } from "../../../scripts/app.js";

export function openGraph() {
  return app.rootGraph ?? app.graph;
}

export function findNode(id) {
  let graph = openGraph();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}
