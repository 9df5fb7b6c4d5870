// SPDX-License-Identifier: LGPL-2.1-or-later
// The dialog of an upgrade.

import { h } from "./dom.js";
import { field, preflight, select } from "./preflight.js";

const MEMORY = [
  ["", "as drover decides"],
  ["shared", "shared: copy nothing"],
  ["copy", "copy while the guest runs"],
  ["postcopy", "post-copy: needs no second chunk of memory"],
];

export function upgrade(names) {
  const qemu = h("input", { type: "text", name: "qemu", spellcheck: "false", autocomplete: "off", autocapitalize: "none",
    placeholder: "the same path as now" });
  const memory = select(MEMORY, "");
  memory.name = "memory";
  preflight({
    title: names.length === 1 ? `Upgrade ${names[0]}` : `Upgrade ${names.length} VMs`,
    check: "/v1/upgrade/check",
    start: "/v1/upgrade",
    doing: "Upgrade",
    fields: [
      field("QEMU binary", qemu, "A path on the host. Empty: the path that the VM has; what the package manager has put there is taken."),
      field("RAM", memory),
    ],
    request: () => ({
      vms: names,
      ...(qemu.value.trim() ? { qemu: qemu.value.trim() } : {}),
      ...(memory.value ? { memory: memory.value } : {}),
    }),
  });
}
