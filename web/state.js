// SPDX-License-Identifier: LGPL-2.1-or-later
// What is known of droverd: asked once, then kept up by its events. Views subscribe, and are told at most every 80 ms.

import { get, optional } from "./api.js";

const REDRAW_MS = 80;
const ASK_MS = 20000; // VMs that are forgotten have no event
const RETRY_MS = [500, 1000, 2000, 5000];
const SAMPLES = 1200; // of one job; beyond, every other one goes
const JOBS = 400;

export const state = {
  link: "connecting", // live, away, ended
  version: null,
  vms: new Map(),
  jobs: new Map(),
  peers: [],
  stats: null,
  samples: new Map(), // job id -> samples as the report has them
};

const readers = new Set();
const enders = new Set();
let redraw = 0;
let source = null;
let tries = 0;
let asking = null;

export function subscribe(reader) {
  readers.add(reader);
  return () => readers.delete(reader);
}

/* Called with each job that ends while the page looks on. */
export function onEnd(reader) {
  enders.add(reader);
}

export function changed() {
  redraw ||= setTimeout(() => {
    redraw = 0;
    for (const reader of [...readers]) reader();
  }, REDRAW_MS);
}

export function isOver(job) {
  return job.state !== "queued" && job.state !== "running";
}

export function jobs() {
  return [...state.jobs.values()].sort((a, b) => Number(b.id) - Number(a.id));
}

/* The job that has a VM now: events of jobs come before the VM's own word. */
export function jobOf(vm) {
  const live = [...state.jobs.values()].find((job) => job.vm === vm.name && !isOver(job));
  if (live) return live.id;
  const known = vm.job === null ? null : state.jobs.get(String(vm.job));
  return known && isOver(known) ? null : vm.job;
}

function setLink(link) {
  if (state.link === link) return;
  state.link = link;
  changed();
}

// --- Samples: what a job's plots are made of ---

function thin(samples) {
  return samples.filter((_, i) => i % 2 === 0 || i === samples.length - 1);
}

function sum(disks, member) {
  return Array.isArray(disks) && disks.length ? disks.reduce((all, disk) => all + (disk[member] || 0), 0) : null;
}

function noteSample(job, time) {
  const p = job.progress;
  if (!p || !job.started_ms || isOver(job)) return;
  const known = state.samples.get(job.id) || [];
  const last = known[known.length - 1];
  const t_ms = time - job.started_ms;
  if (last && t_ms <= last.t_ms) return;
  known.push({
    t_ms,
    phase: p.phase ?? job.stage,
    pass: p.pass ?? null,
    bytes_done: p.bytes_done ?? null,
    remaining_bytes: remaining(p),
    rate_mib: p.rate_mib ?? null,
    dirty_mib: p.dirty_mib ?? null,
    expected_pause_ms: p.expected_pause_ms ?? null,
    disk_bytes_done: sum(p.disks, "bytes_done"),
    disk_bytes_total: sum(p.disks, "bytes_total"),
  });
  state.samples.set(job.id, known.length > SAMPLES ? thin(known) : known);
}

export function remaining(progress) {
  if (typeof progress.remaining_bytes === "number") return progress.remaining_bytes;
  return progress.bytes_total > 0 ? Math.max(0, progress.bytes_total - progress.bytes_done) : null;
}

/* A page that is opened in the middle of a job has its plots from the beginning, where droverd keeps samples. */
async function seed(job) {
  if (isOver(job) || state.samples.has(job.id)) return;
  state.samples.set(job.id, []);
  const report = await optional(`/v1/jobs/${encodeURIComponent(job.id)}/report`).catch(() => null);
  if (!report?.samples?.length) return;
  const seen = state.samples.get(job.id) || [];
  const last = report.samples[report.samples.length - 1].t_ms;
  state.samples.set(job.id, report.samples.slice(-SAMPLES).concat(seen.filter((one) => one.t_ms > last)));
  changed();
}

// --- Taking what comes ---

/* A job that has ended does not change any more: an older answer must not bring it back. */
export function takeJob(job, time = Date.now()) {
  const known = state.jobs.get(job.id);
  if (known && isOver(known)) return;
  state.jobs.set(job.id, job);
  void seed(job);
  noteSample(job, time);
  if (known && isOver(job)) {
    for (const reader of enders) reader(job);
    void askAgain();
  }
  changed();
}

export function takeVm(vm) {
  state.vms.set(vm.name, { ...state.vms.get(vm.name), ...vm });
  changed();
}

function replaceVms(list) {
  state.vms = new Map(list.map((vm) => [vm.name, vm]));
}

function dropOldJobs() {
  for (const job of jobs().slice(JOBS))
    if (isOver(job)) {
      state.jobs.delete(job.id);
      state.samples.delete(job.id);
    }
}

/* An answer with an error is an answer; 502 and 504 are drover ui's, when droverd gives none. */
function failed(error) {
  if (error.status === 403) setLink("ended");
  else if ([0, 502, 504].includes(error.status)) setLink("away");
}

function answered() {
  if (source?.readyState === EventSource.OPEN) setLink("live");
}

/* What changes without an event. */
async function ask() {
  try {
    const [vms, stats] = await Promise.all([get("/v1/vms"), optional("/v1/stats")]);
    replaceVms(vms);
    state.stats = stats;
    answered();
    changed();
  } catch (error) {
    failed(error);
  }
}

function askAgain() {
  asking ||= ask().finally(() => {
    asking = null;
  });
  return asking;
}

export async function loadPeers() {
  state.peers = await get("/v1/peers");
  changed();
}

/* All of it anew: at the beginning, and whenever events may have been missed. */
export async function load() {
  try {
    const [version, list] = await Promise.all([get("/v1/version"), get("/v1/jobs"), loadPeers(), askAgain()]);
    state.version = version;
    for (const job of list) takeJob(job);
    dropOldJobs();
    changed();
  } catch (error) {
    failed(error);
  }
}

// --- Events ---

function onMessage(event, take) {
  try {
    take(JSON.parse(event.data));
  } catch {
    void load(); // not what it should be: the whole of it is
  }
}

/* A browser takes up a stream that breaks by itself, but not one that was refused (droverd is being restarted). */
function onError() {
  setLink(state.link === "ended" ? "ended" : "away");
  if (source.readyState !== EventSource.CLOSED) return;
  void load(); // tells why
  setTimeout(listen, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
  tries += 1;
}

function listen() {
  source?.close();
  source = new EventSource("/v1/events");
  source.onopen = () => {
    tries = 0;
    setLink("live");
    void load();
  };
  source.onerror = onError;
  source.addEventListener("job", (event) => onMessage(event, (told) => takeJob(told.job, told.time_ms)));
  source.addEventListener("vm", (event) => onMessage(event, (told) => takeVm(told.vm)));
  source.addEventListener("lost", () => void load());
}

export function start() {
  listen();
  setInterval(() => {
    if (state.link !== "ended" && !document.hidden) void askAgain();
  }, ASK_MS);
}
