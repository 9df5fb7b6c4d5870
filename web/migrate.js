// SPDX-License-Identifier: LGPL-2.1-or-later
// The dialog of a move to another host.

import { h } from "./dom.js";
import { field, number, preflight, select } from "./preflight.js";
import { state } from "./state.js";

const POSTCOPY = [
  ["", "as drover decides"],
  ["postcopy", "only when I switch to it"],
  ["postcopy_after_precopy", "as soon as RAM has been sent once"],
  ["no_postcopy", "never"],
];
const STORAGE = [
  ["", "are on storage that both hosts have"],
  ["copy_storage_all", "copy them, all of each"],
  ["copy_storage_inc", "copy the top image of each chain"],
  ["copy_storage_postcopy", "copy them after the guest has moved"],
];

function amount(name, max) {
  return h("input", { type: "number", name, min: 1, max, step: 1, inputmode: "numeric", placeholder: "default" });
}

function text(name, placeholder) {
  return h("input", { type: "text", name, spellcheck: "false", autocomplete: "off", autocapitalize: "none", placeholder });
}

function named(name, options) {
  const node = select(options, options[0][0]);
  node.name = name;
  return node;
}

export function migrate(names) {
  const peer = named("peer", state.peers.map((one) => [one.name, `${one.name} (${one.host})`]));
  const postcopy = named("postcopy", POSTCOPY);
  const storage = named("storage", STORAGE);
  const bandwidth = amount("bandwidth", 1000000);
  const downtime = amount("downtime", 2000000);
  const qemu = text("qemu", "the path that the VM has here");
  preflight({
    title: names.length === 1 ? `Move ${names[0]} to another host` : `Move ${names.length} VMs to another host`,
    check: "/v1/migrate/check",
    start: "/v1/migrate",
    doing: "Move",
    fields: [
      field("To", peer),
      field("Post-copy", postcopy, "The guest goes on over there at once, and its pages follow."),
      field("Disks", storage),
      field("At most, MiB/s", bandwidth),
      field("Longest pause, ms", downtime),
      field("QEMU binary over there", qemu),
    ],
    request: () => ({
      vms: names,
      peer: peer.value,
      ...(postcopy.value ? { [postcopy.value]: true } : {}),
      ...(storage.value ? { [storage.value]: true } : {}),
      ...(number(bandwidth) === undefined ? {} : { bandwidth: number(bandwidth) }),
      ...(number(downtime) === undefined ? {} : { downtime: number(downtime) }),
      ...(qemu.value.trim() ? { qemu: qemu.value.trim() } : {}),
    }),
  });
}
