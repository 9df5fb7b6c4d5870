// SPDX-License-Identifier: LGPL-2.1-or-later
// The dialog before a move: choices, what preflight finds for just these choices, and only then Go.

import { post } from "./api.js";
import { dialog } from "./actions.js";
import { h, id, say, text } from "./dom.js";
import { findings, problem } from "./findings.js";
import * as format from "./format.js";
import { takeJob } from "./state.js";

function expectations(report) {
  const parts = [report.qemu_after ? format.versions(report.qemu_before, report.qemu_after) : null];
  if (typeof report.expected_pause_ms === "number") parts.push(`expected pause ${format.ms(report.expected_pause_ms)}`);
  if (typeof report.expected_total_ms === "number") parts.push(`expected time ${format.ms(report.expected_total_ms)}`);
  if (typeof report.link_mib === "number") parts.push(`link ${format.rate(report.link_mib)}`);
  return parts.filter(Boolean).join(", ");
}

function reportOf(report, many) {
  return h("section", { class: "report", "data-ok": report.ok },
    many ? h("h3", {}, report.vm) : null,
    h("p", { class: "quiet" }, expectations(report)),
    report.findings.length ? findings(report.findings) : h("p", {}, "Preflight has nothing to say: it would go as it is."));
}

function count(reports) {
  return reports.reduce((all, one) => all + one.findings.filter((finding) => finding.severity === "blocker").length, 0);
}

/* What a check says applies to the choices that it was made with: any change makes Go wait for another. A text is checked when it
 * has been typed to its end, because droverd runs a binary to ask it: half of a path may be another program's. */
class Preflight {
  constructor({ title, check, start, fields, request, doing }) {
    Object.assign(this, { checkPath: check, startPath: start, request, doing });
    this.verdict = h("p", { class: "verdict", role: "status" });
    this.found = h("div", { class: "found" });
    this.wrong = h("div", { role: "alert" });
    this.look = h("button", { type: "submit", "data-do": "check" }, "Check");
    this.go = h("button", { type: "button", class: "main", disabled: true }, doing);
    const shut = h("button", { type: "button" }, "Close");
    const form = h("form", { novalidate: true }, h("div", { class: "fields" }, fields), this.verdict, this.found, this.wrong,
      h("div", { class: "buttons" }, shut, this.look, this.go));
    this.box = dialog(title, form);
    this.box.classList.add("wide");
    shut.addEventListener("click", () => this.box.close());
    this.go.addEventListener("click", () => void this.run());
    form.addEventListener("input", () => this.stale());
    form.addEventListener("change", () => void this.check());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.check();
    });
    void this.check();
  }

  stale() {
    this.go.disabled = true;
    this.asked = null; // the answer that is under way is not for this any more
    this.say("Not checked yet", null);
  }

  say(what, ok) {
    text(this.verdict, what);
    this.verdict.dataset.ok = String(ok);
  }

  async check() {
    const request = this.request();
    const asked = JSON.stringify(request);
    if (this.asked === asked && this.looking) return;
    Object.assign(this, { asked, checked: request, looking: true });
    this.go.disabled = true;
    this.wrong.replaceChildren();
    this.say("Preflight looks at it …", null);
    try {
      const reports = await post(this.checkPath, request);
      if (this.asked === asked) this.tell(reports);
    } catch (error) {
      if (this.asked === asked) this.fail(error);
    }
    if (this.asked === asked) this.looking = false;
  }

  tell(reports) {
    const blockers = count(reports);
    this.found.replaceChildren(...reports.map((one) => reportOf(one, reports.length > 1)));
    this.go.disabled = blockers > 0 || !reports.every((one) => one.ok);
    this.say(blockers ? `${blockers} blocker${blockers > 1 ? "s" : ""}: it would be refused` : "Nothing stands in the way", !this.go.disabled);
  }

  fail(error) {
    this.found.replaceChildren();
    this.say("Preflight could not be done", false);
    this.wrong.replaceChildren(problem(error));
  }

  async run() {
    this.go.disabled = true;
    try {
      const jobs = await post(this.startPath, this.checked);
      for (const job of jobs) takeJob(job);
      this.box.close();
      say(`${this.doing}: ${jobs.map((job) => `job ${job.id}, ${job.vm}`).join("; ")}`);
    } catch (error) {
      this.wrong.replaceChildren(problem(error));
      this.go.disabled = false;
    }
  }
}

export function preflight(what) {
  return new Preflight(what);
}

export function field(label, input, hint) {
  const name = id("field");
  const about = hint ? id("hint") : null;
  input.id = name;
  if (about) input.setAttribute("aria-describedby", about);
  return h("div", { class: "field" }, h("label", { for: name }, label), input, hint ? h("p", { id: about, class: "hint" }, hint) : null);
}

export function select(options, chosen) {
  return h("select", {}, options.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
}

/* Of a field for a whole number: undefined where it is empty, and what droverd will refuse by name where it is none. */
export function number(input) {
  if (input.validity.badInput) return input.value || "?";
  return input.value === "" ? undefined : Number(input.value);
}
