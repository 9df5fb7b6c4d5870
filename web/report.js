// SPDX-License-Identifier: LGPL-2.1-or-later
// One job: where it is, or what came of it, with its flight recorder where droverd has one.

import { get, name, optional } from "./api.js";
import { facts, h, show } from "./dom.js";
import { findings, problem } from "./findings.js";
import * as format from "./format.js";
import { liveJobs, stateMark, track } from "./jobs.js";
import { plots, stacked } from "./plots.js";
import { isOver, state, takeJob } from "./state.js";

/* What one came for. */
function lead(job) {
  const result = job.result || {};
  const pairs = [
    ["paused", typeof result.pause_ms === "number" ? format.ms(result.pause_ms) : null],
    ["took", typeof result.total_ms === "number" ? format.ms(result.total_ms) : null],
    ["moved", typeof result.bytes_moved === "number" ? format.bytes(result.bytes_moved) : null],
  ].filter(([, value]) => value);
  return pairs.length ? h("dl", { class: "live-figures" }, pairs.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)))) : null;
}

function figures(job) {
  const result = job.result || {};
  return facts([
    ["expected pause", typeof result.expected_pause_ms === "number" ? format.ms(result.expected_pause_ms) : null],
    ["expected time", typeof result.expected_total_ms === "number" ? format.ms(result.expected_total_ms) : null],
    ["disks moved", result.storage_bytes > 0 ? format.bytes(result.storage_bytes) : null],
    ["memory", result.memory_mode ? format.memory(result.memory_mode) : null],
    ["why", result.memory_reason],
    ["passes", result.passes > 0 ? result.passes : null],
    ["QEMU", result.qemu_after ? format.versions(result.qemu_before, result.qemu_after).replace("QEMU ", "") : null],
    ["peer", result.peer],
    ["transport", result.transport],
    ["recoveries", result.recoveries > 0 ? result.recoveries : null],
    ["begun", job.started_ms ? format.clock(job.started_ms) : null],
    ["ended", job.ended_ms ? format.clock(job.ended_ms) : null],
  ], { class: "facts tiles" });
}

function pauseOf(pause) {
  const expected = typeof pause.expected_ms === "number" ? `; expected: ${format.ms(pause.expected_ms)}` : "";
  return h("section", {}, h("h3", {}, "What the pause went to"),
    h("p", { class: "quiet" }, `The guest stood still for ${format.ms(pause.total_ms)}${expected}.`),
    stacked("Parts of the pause", pause.parts || []));
}

function phasesOf(phases) {
  const parts = phases.filter((one) => one.end_ms > one.begin_ms).map((one) => ({ name: one.name, ms: one.end_ms - one.begin_ms }));
  return parts.length ? h("section", {}, h("h3", {}, "Where the time went"), stacked("Phases", parts)) : null;
}

/* What the recorder has, else what this page has seen itself. */
function recorded(report, samples) {
  const plot = plots();
  const node = h("div", {}, report?.pause ? pauseOf(report.pause) : null, report?.phases ? phasesOf(report.phases) : null, plot);
  plot.update(report?.samples?.length ? report.samples : samples);
  node.gone = () => plot.gone();
  return node;
}

function over(job, report) {
  const way = track();
  const mark = stateMark();
  way.update(job);
  mark.update(job.state);
  const plot = recorded(report, state.samples.get(job.id) || []);
  const node = h("article", { class: "card", "data-job": job.id },
    h("header", {}, h("h2", {}, `${format.kind(job.kind)} of ${job.vm}`), h("span", { class: "quiet" }, `job ${job.id}`), mark),
    way, job.error ? problem({ message: job.error.message, remedy: job.error.remedy }) : null,
    lead(job), figures(job), plot,
    job.findings?.length ? h("section", {}, h("h3", {}, "What preflight found"), findings(job.findings)) : null);
  node.gone = () => plot.gone();
  return node;
}

export function jobPage(id) {
  const body = h("div", {}, h("p", { class: "quiet" }, "…"));
  const live = liveJobs();
  let shown = null;
  let asked = false;
  const node = h("div", { class: "page" }, h("p", {}, h("a", { href: "#/", class: "back" }, "Overview")), live, body);

  const draw = async (job) => {
    asked = true;
    try {
      const [now, report] = await Promise.all([job || get(`/v1/jobs/${name(id)}`), optional(`/v1/jobs/${name(id)}/report`).catch(() => null)]);
      if (!job) takeJob(now);
      if (!isOver(now)) {
        asked = false;
        return;
      }
      shown = over(now, report);
      body.replaceChildren(shown);
    } catch (error) {
      body.replaceChildren(problem(error));
    }
  };
  node.update = () => {
    const job = state.jobs.get(id);
    live.update();
    show(live, Boolean(job && !isOver(job)));
    show(body, !job || isOver(job));
    if (!asked && (!job || isOver(job)) && state.link !== "connecting") void draw(job);
  };
  node.gone = () => {
    live.gone();
    shown?.gone();
  };
  return node;
}
