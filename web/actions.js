// SPDX-License-Identifier: LGPL-2.1-or-later
// What the buttons do that need no preflight, and the dialogs that ask before.

import { post, name } from "./api.js";
import { h, id, say } from "./dom.js";
import { problem } from "./findings.js";
import { takeJob, takeVm } from "./state.js";

/* A modal dialog: the browser keeps the focus within, and Esc closes it. It is removed when it closes; the focus goes back. */
export function dialog(title, ...content) {
  const heading = id("title");
  const node = h("dialog", { "aria-labelledby": heading }, h("h2", { id: heading }, title), content);
  const before = document.activeElement;
  node.addEventListener("close", () => {
    node.remove();
    if (before?.isConnected) before.focus();
  });
  document.body.append(node);
  node.showModal();
  return node;
}

/* Asks, and then does it; an error stays in the dialog, with its remedy. */
function ask(title, what, doing, act, danger) {
  const wrong = h("div", { role: "alert" });
  const go = h("button", { type: "button", class: danger ? "danger" : "main" }, doing);
  const no = h("button", { type: "button", autofocus: true }, "Leave it");
  const box = dialog(title, h("p", {}, what), wrong, h("div", { class: "buttons" }, no, go));
  no.addEventListener("click", () => box.close());
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      await act();
      box.close();
    } catch (error) {
      wrong.replaceChildren(problem(error));
      go.disabled = false;
    }
  });
}

/* An error of what was asked for without a dialog. */
export function notice(error) {
  const node = document.getElementById("notice");
  const shut = h("button", { type: "button", onclick: () => { node.hidden = true; } }, "Dismiss");
  node.replaceChildren(problem(error), shut);
  node.hidden = false;
}

export function cancel(job) {
  ask(`Cancel job ${job.id}?`, `${job.vm} then runs on where it is now. What has been moved so far is dropped.`, "Cancel the job",
    async () => {
      takeJob(await post(`/v1/jobs/${name(job.id)}/cancel`));
      say(`Job ${job.id} was asked to stop`);
    }, true);
}

export function postcopy(job) {
  ask(`Switch ${job.vm} to post-copy?`,
    "The guest goes on at the other host at once, and its pages follow. Until the last one has, both hosts and the link are "
    + "needed, and the move cannot be cancelled.", "Switch to post-copy",
    async () => {
      await post(`/v1/vms/${name(job.vm)}/migrate/postcopy`);
      say(`${job.vm} goes on by post-copy`);
    });
}

export function pause(vm) {
  ask(`Pause ${vm.name}?`, "Its vCPUs stop, and the guest stands still until it is resumed.", "Pause", async () => {
    takeVm(await post(`/v1/vms/${name(vm.name)}/pause`));
    say(`${vm.name} is paused`);
  });
}

export async function resume(vm) {
  try {
    takeVm(await post(`/v1/vms/${name(vm.name)}/resume`));
    say(`${vm.name} runs`);
  } catch (error) {
    notice(error);
  }
}
