// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of VMs, with what can be done to each.

import { pause, resume } from "./actions.js";
import { attribute, cell, h, keyed, show, table, text } from "./dom.js";
import * as format from "./format.js";
import { stateMark } from "./jobs.js";
import { migrate } from "./migrate.js";
import { jobOf, state } from "./state.js";
import { upgrade } from "./upgrade.js";

function mayMove(vm) {
  return jobOf(vm) === null && (vm.state === "running" || vm.state === "paused");
}

function button(does, label, act) {
  return h("button", { type: "button", "data-do": does, onclick: act }, label);
}

/* The buttons of one VM, or of the page about it. */
export function vmButtons(current) {
  const up = button("upgrade", "Upgrade…", () => upgrade([current().name]));
  const move = button("migrate", "Move…", () => migrate([current().name]));
  const halt = button("pause", "Pause…", () => pause(current()));
  const go = button("resume", "Resume", () => resume(current()));
  const node = h("div", { class: "buttons" }, up, move, halt, go);
  node.update = (vm) => {
    const job = jobOf(vm);
    const why = mayMove(vm) ? null : job !== null ? `job ${job} is under way` : `it is ${vm.state}`;
    up.disabled = move.disabled = why !== null;
    move.disabled ||= state.peers.length === 0;
    attribute(up, "title", why);
    attribute(move, "title", why || (state.peers.length ? null : "there is no peer: drover peer add NAME HOST"));
    halt.disabled = go.disabled = job !== null;
    show(halt, vm.state === "running");
    show(go, vm.state === "paused");
    for (const one of [up, move, halt, go]) one.setAttribute("aria-label", `${one.textContent} ${vm.name}`);
  };
  return node;
}

function row(first) {
  let vm = first;
  const mark = stateMark();
  const qemu = h("span", {});
  const machine = h("span", {});
  const memory = h("span", {});
  const job = h("a", {});
  const does = vmButtons(() => vm);
  const node = h("tr", { "data-vm": first.name },
    cell("VM", { class: "name" }, h("a", { href: `#/vm/${encodeURIComponent(first.name)}` }, first.name)),
    cell("state", {}, mark), cell("QEMU", {}, qemu), cell("machine", {}, machine), cell("memory", {}, memory),
    cell("job", {}, job), cell("", { class: "does" }, does));
  node.update = (now) => {
    vm = now;
    mark.update(now.state);
    text(qemu, now.qemu_version || "–");
    text(machine, now.machine || "–");
    text(memory, now.memory_mode || "–");
    const has = jobOf(now);
    text(job, has === null ? "" : jobText(has));
    attribute(job, "href", has === null ? null : `#/job/${has}`);
    job.parentNode.classList.toggle("empty", has === null);
    does.update(now);
  };
  return node;
}

function jobText(id) {
  const job = state.jobs.get(String(id));
  return job ? `${id}: ${format.kind(job.kind).toLowerCase()}, ${job.stage || job.state}` : String(id);
}

function names() {
  return [...state.vms.values()].filter(mayMove).map((vm) => vm.name);
}

export function vmTable() {
  const list = table("VMs", ["VM", "state", "QEMU", "machine", "memory", "job", ""]);
  const none = h("p", { class: "quiet" }, "No VM yet. On the host: ", h("code", {}, "drover adopt NAME --pid PID"), " or ",
    h("code", {}, "drover run NAME -- qemu-system-x86_64 …"));
  const up = button("upgrade-all", "Upgrade all…", () => upgrade(names()));
  const move = button("migrate-all", "Move all…", () => migrate(names()));
  const node = h("section", { "aria-labelledby": "vms-title" },
    h("div", { class: "head" }, h("h2", { id: "vms-title" }, "VMs"), h("div", { class: "buttons" }, up, move)), list, none);
  node.update = () => {
    const vms = [...state.vms.values()].sort((a, b) => a.name.localeCompare(b.name));
    keyed(list.body, vms, (vm) => vm.name, row);
    show(list, vms.length > 0);
    show(none, vms.length === 0 && state.version !== null);
    show(up, vms.length > 1);
    show(move, vms.length > 1 && state.peers.length > 0);
    up.disabled = move.disabled = names().length === 0;
  };
  return node;
}
