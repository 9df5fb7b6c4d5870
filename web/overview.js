// SPDX-License-Identifier: LGPL-2.1-or-later
// The first page: what is under way, the VMs, the peers, what has been.

import { cell, h, keyed, show, table, text } from "./dom.js";
import * as format from "./format.js";
import { history, liveJobs } from "./jobs.js";
import { peers } from "./peers.js";
import { state } from "./state.js";
import { vmTable } from "./vms.js";

const COLUMNS = ["jobs", "pause, p50 / p99", "time, p50 / p99"];

function row(first) {
  const values = Array.from({ length: 3 }, () => h("span", {}));
  const node = h("tr", {}, cell("kind", { class: "kind" }, format.kind(first.kind)),
    COLUMNS.map((label, i) => cell(label, { class: "number" }, values[i])));
  node.update = (one) => [one.jobs, quantiles(one.pause_ms), quantiles(one.total_ms)].forEach((value, i) => text(values[i], value));
  return node;
}

function quantiles(of) {
  return of ? `${format.ms(of.p50)} / ${format.ms(of.p99)}` : "–";
}

/* Over all jobs that droverd has on record; not every droverd tells. */
function stats() {
  const list = table("Pauses and times", ["kind", ...COLUMNS.map((one) => `#${one}`)]);
  const node = h("section", { "aria-labelledby": "stats-title" }, h("h2", { id: "stats-title" }, "Pauses and times"), list);
  node.update = () => {
    const kinds = (state.stats?.kinds || []).filter((one) => one.jobs > 0);
    keyed(list.body, kinds, (one) => one.kind, row);
    show(node, kinds.length > 0);
  };
  return node;
}

export function overview() {
  const parts = [liveJobs(), vmTable(), peers(), stats(), history()];
  const [live, vms, others, figures, past] = parts;
  const node = h("div", { class: "overview" }, h("div", { class: "first" }, live, vms), h("aside", {}, others, figures),
    h("div", { class: "last" }, past));
  node.update = () => parts.forEach((one) => one.update());
  node.gone = () => live.gone();
  return node;
}
