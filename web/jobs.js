// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs: those under way as cards that follow them, those that have ended as a table to search.

import { cancel, postcopy } from "./actions.js";
import { attribute, cell, h, keyed, show, table, text } from "./dom.js";
import * as format from "./format.js";
import { plots } from "./plots.js";
import { isOver, jobs, remaining, state } from "./state.js";

/* docs/STATES.md. Those with "?" are not on every job's way. */
const STAGES = {
  upgrade: ["preflight", "start", "verify", "transfer", "postcopy?", "commit"],
  migrate: ["preflight", "start", "verify", "storage?", "transfer", "postcopy?", "commit", "serve?"],
  incoming: ["preflight?", "storage?", "waiting", "promised", "accepted", "arrived", "fetch?"],
};
/* Between two stages, told where droverd is made to stop there. */
const WITHIN = { switchover: "transfer", resume: "transfer", queued: null };
/* docs/STATES.md: from here on a cancel is refused. */
const NO_RETURN = new Set(["postcopy", "switchover", "resume", "commit", "promised", "accepted", "arrived", "pivot", "finish", "rollback"]);
const FEW = 25;

function isOnTheWay(job, stage) {
  if (stage === "postcopy") return job.result?.memory_mode === "postcopy";
  return stage === "storage" && (job.result?.storage_bytes > 0 || job.progress?.disks?.length > 0);
}

function stagesOf(job, seen) {
  const known = STAGES[job.kind];
  if (!known) return job.stage && job.stage !== "queued" ? [job.stage] : [];
  return known.filter((one) => !one.endsWith("?") || seen.has(one.slice(0, -1)) || isOnTheWay(job, one.slice(0, -1)))
    .map((one) => one.replace("?", ""));
}

/* The way of a job, and where on it it is. */
export function track() {
  const list = h("ol", { class: "track", "aria-label": "stages" });
  const seen = new Set();
  list.update = (job) => {
    seen.add(job.stage);
    const stages = stagesOf(job, seen);
    const now = stages.indexOf(WITHIN[job.stage] ?? job.stage);
    const done = job.state === "succeeded";
    keyed(list, stages, (one) => one, (one) => h("li", {}, one));
    [...list.children].forEach((item, i) => {
      item.dataset.at = done || i < now ? "done" : i === now ? (isOver(job) ? "ended" : "now") : "ahead";
      attribute(item, "aria-current", i === now && !isOver(job) ? "step" : null);
    });
  };
  return list;
}

function bar(name) {
  const progress = h("progress", { max: 1, value: 0, "aria-label": name });
  const figures = h("span", { class: "figures" });
  const node = h("div", { class: "bar-row" }, h("span", {}, name), progress, figures);
  node.update = ({ done, total }) => {
    progress.value = total > 0 ? Math.min(1, done / total) : 0;
    text(figures, `${format.bytes(done)} of ${format.bytes(total)}, ${format.percent(done, total)}`);
  };
  return node;
}

/* While only disks are copied, the whole is their sum, and is told by them. */
function barsOf(job) {
  const p = job.progress;
  if (!p) return [];
  const disks = (p.disks || []).map((disk) => ({ name: disk.disk, done: disk.bytes_done, total: disk.bytes_total }));
  const all = disks.reduce((sum, disk) => sum + disk.total, 0);
  if (!(p.bytes_total > 0) || (disks.length && (job.stage === "storage" || all === p.bytes_total))) return disks;
  return [{ name: job.kind.startsWith("disk-") ? "data" : "memory", done: p.bytes_done, total: p.bytes_total }, ...disks];
}

function figure(name) {
  const value = h("dd", {}, "–");
  const node = h("div", {}, h("dt", {}, name), value);
  node.update = (now) => {
    text(value, now);
    show(node, now !== "–");
  };
  return node;
}

function figures() {
  const shown = {
    rate: figure("rate"), remaining: figure("remaining"), dirty: figure("dirty rate"), pass: figure("pass"),
    pause: figure("expected pause"), end: figure("ends in about"),
  };
  const node = h("dl", { class: "live-figures" }, Object.values(shown));
  node.update = (p) => {
    shown.rate.update(format.rate(p?.rate_mib));
    shown.remaining.update(p ? format.bytes(remaining(p)) : "–");
    shown.dirty.update(format.rate(p?.dirty_mib));
    shown.pass.update(p?.pass > 0 ? String(p.pass) : "–");
    shown.pause.update(format.ms(p?.expected_pause_ms));
    shown.end.update(p?.expected_ms > 0 ? format.ms(p.expected_ms) : "–");
  };
  return node;
}

function phaseOf(job) {
  if (job.state === "queued") return "waits for its turn";
  return job.progress?.phase || job.stage || "begins";
}

/* Buttons that say why they cannot be used, and stay where they are. */
function buttons(current) {
  const over = h("button", { type: "button", "data-do": "postcopy", onclick: () => postcopy(current()) }, "Switch to post-copy");
  const stop = h("button", { type: "button", class: "danger", "data-do": "cancel", onclick: () => cancel(current()) }, "Cancel");
  const why = h("span", { class: "quiet" });
  const node = h("div", { class: "buttons" }, over, stop, why);
  node.update = (job) => {
    const past = NO_RETURN.has(job.stage);
    show(over, job.kind === "migrate");
    over.disabled = job.stage !== "transfer";
    attribute(over, "title", job.stage === "transfer" ? null : job.stage === "postcopy" ? "it is in post-copy" : "only while RAM is on its way");
    stop.disabled = past;
    text(why, past ? "past its point of no return" : "");
  };
  return node;
}

function card(first) {
  let job = first;
  const phase = h("span", { class: "phase" });
  const way = track();
  const bars = h("div", { class: "bars" });
  const numbers = figures();
  const plot = plots();
  const does = buttons(() => job);
  const node = h("article", { class: "card job", "data-job": first.id, "aria-label": `${format.kind(first.kind)} of ${first.vm}` },
    h("header", {}, h("h3", {}, h("a", { href: `#/job/${first.id}` }, `${format.kind(first.kind)} of ${first.vm}`)),
      h("span", { class: "quiet" }, `job ${first.id}`), phase),
    way, bars, numbers, plot, does);
  node.update = (now) => {
    job = now;
    text(phase, phaseOf(now));
    way.update(now);
    keyed(bars, barsOf(now), (one) => one.name, (one) => bar(one.name));
    numbers.update(now.progress);
    plot.update(state.samples.get(now.id) || []);
    does.update(now);
  };
  node.gone = () => plot.gone();
  return node;
}

export function liveJobs() {
  const list = h("div", { class: "cards" });
  const node = h("section", { "aria-labelledby": "live-title" }, h("h2", { id: "live-title" }, "Under way"), list);
  node.update = () => {
    const live = jobs().filter((job) => !isOver(job));
    show(node, live.length > 0);
    keyed(list, live, (job) => job.id, card);
  };
  node.gone = () => keyed(list, [], (job) => job.id, card);
  return node;
}

// --- What has ended ---

export function stateMark() {
  const node = h("span", { class: "state" });
  node.update = (name) => {
    text(node, name);
    node.dataset.state = name;
  };
  return node;
}

function row(job) {
  const mark = stateMark();
  mark.update(job.state);
  return h("tr", { "data-job": job.id },
    cell("job", {}, h("a", { href: `#/job/${job.id}` }, `${job.id}`)),
    cell("VM", {}, job.vm),
    cell("what", {}, format.kind(job.kind)),
    cell("end", {}, mark),
    cell("outcome", { class: "outcome" }, format.outcome(job)),
    cell("ended", { class: "when" }, format.clock(job.ended_ms)));
}

function options(select, values, all, naming) {
  keyed(select, ["", ...values], (one) => one, (one) => h("option", { value: one }, one ? naming(one) : all));
}

function fits(job, query, kind, end) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const about = `${job.id} ${job.vm} ${format.kind(job.kind)} ${job.state} ${format.outcome(job)}`.toLowerCase();
  return (!kind || job.kind === kind) && (!end || job.state === end) && words.every((word) => about.includes(word));
}

export function history(vm) {
  const query = h("input", { type: "search", placeholder: "VM, job, words", "aria-label": "Search the history" });
  const kind = h("select", { "aria-label": "Kind of job" });
  const end = h("select", { "aria-label": "How it ended" });
  const more = h("button", { type: "button", class: "more" });
  const none = h("p", { class: "quiet" });
  const list = table("Jobs that have ended", ["job", "VM", "what", "end", "outcome", "ended"]);
  let all = false;
  const node = h("section", { "aria-labelledby": "history-title" }, h("div", { class: "head" }, h("h2", { id: "history-title" }, "History"),
    h("div", { class: "filters" }, query, kind, end)), list, none, more);
  node.update = () => {
    const over = jobs().filter((job) => isOver(job) && (!vm || job.vm === vm));
    options(kind, [...new Set(over.map((job) => job.kind))].sort(), "all kinds", format.kind);
    options(end, [...new Set(over.map((job) => job.state))].sort(), "all ends", (one) => one);
    const fitting = over.filter((job) => fits(job, query.value, kind.value, end.value));
    keyed(list.body, all ? fitting : fitting.slice(0, FEW), (job) => job.id, row);
    show(list, fitting.length > 0);
    show(none, fitting.length === 0);
    text(none, over.length ? "No job fits these words." : "No job has ended yet.");
    show(more, !all && fitting.length > FEW);
    text(more, `Show all ${fitting.length}`);
  };
  more.addEventListener("click", () => {
    all = true;
    node.update();
  });
  for (const one of [query, kind, end]) one.addEventListener("input", node.update);
  return node;
}
