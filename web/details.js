// SPDX-License-Identifier: LGPL-2.1-or-later
// One VM: what it is made of, and its jobs.

import { get, name } from "./api.js";
import { cell, facts, h, table } from "./dom.js";
import { problem } from "./findings.js";
import * as format from "./format.js";
import { history, liveJobs, stateMark } from "./jobs.js";
import { state } from "./state.js";
import { vmButtons } from "./vms.js";

function disks(list) {
  const below = (disk) => disk.backing?.length || 0;
  return h("section", {}, h("h3", {}, "Disks"), list.length ? table("Disks", ["disk", "image", "format", "size"],
    list.map((disk) => h("tr", {}, cell("disk", {}, disk.backend || disk.device || disk.node || "–"),
      cell("image", { class: "path" }, disk.file || "no medium", below(disk) ? h("span", { class: "quiet" }, ` on ${below(disk)} more`) : null),
      cell("format", {}, disk.format || "–"), cell("size", {}, format.bytes(disk.bytes))))) : h("p", { class: "quiet" }, "None."));
}

function nics(list) {
  return h("section", {}, h("h3", {}, "Network"), list.length ? table("Network devices", ["device", "model", "MAC", "behind it"],
    list.map((nic) => h("tr", {}, cell("device", {}, nic.id || "–"), cell("model", {}, nic.model || "–"), cell("MAC", { class: "path" }, nic.mac || "–"),
      cell("behind it", {}, [nic.type, nic.ifname || nic.netdev].filter(Boolean).join(" ") || "–")))) : h("p", { class: "quiet" }, "None."));
}

/* One option a line, with its value: that is how people read it. */
function lines(argv) {
  const out = [];
  for (const word of argv) {
    if (out.length && !word.startsWith("-") && out[out.length - 1].length === 1 && out.length > 1) out[out.length - 1].push(word);
    else out.push([word]);
  }
  return out.map((words) => words.join(" ")).join("\n");
}

function argv(title, words) {
  return words?.length ? h("details", {}, h("summary", {}, title), h("pre", { tabindex: 0 }, lines(words))) : null;
}

function tell(vm) {
  return [
    vm.note ? h("p", { class: "remark" }, vm.note) : null,
    vm.exit ? h("p", { class: "remark" }, `Its QEMU ended: ${vm.exit}`) : null,
    facts([
      ["QEMU", vm.qemu_version], ["machine", vm.machine], ["RAM", vm.memory?.bytes ? format.bytes(vm.memory.bytes) : null],
      ["memory", vm.memory_mode], ["pid", vm.pid || null], ["UUID", vm.uuid], ["upgrades", vm.upgrades],
      ["came by", vm.adopted ? "drover adopt" : "drover run, or a move"], ["console", vm.console], ["log", vm.log],
    ], { class: "facts tiles" }),
    disks(vm.disks || []), nics(vm.nics || []),
    h("section", {}, h("h3", {}, "Command line"), argv("As it was given", vm.argv_given), argv("As it runs", vm.argv_running)),
  ];
}

export function vmPage(vmName) {
  const mark = stateMark();
  const does = vmButtons(() => state.vms.get(vmName));
  const body = h("div", {}, h("p", { class: "quiet" }, "…"));
  const live = liveJobs();
  const past = history(vmName);
  let seen = "";
  const node = h("div", { class: "page" }, h("p", {}, h("a", { href: "#/", class: "back" }, "Overview")),
    h("article", { class: "card" }, h("header", {}, h("h2", {}, vmName), mark), does, body), live, past);

  const draw = async () => {
    try {
      body.replaceChildren(...tell(await get(`/v1/vms/${name(vmName)}`)).filter(Boolean));
    } catch (error) {
      body.replaceChildren(problem(error));
    }
  };
  node.update = () => {
    const vm = state.vms.get(vmName);
    const now = JSON.stringify(vm || null);
    if (vm) {
      mark.update(vm.state);
      does.update(vm);
    }
    does.hidden = !vm;
    mark.hidden = !vm;
    live.update();
    past.update();
    if (now !== seen && state.link !== "connecting") {
      seen = now;
      void draw();
    }
  };
  node.gone = () => live.gone();
  return node;
}
