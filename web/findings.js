// SPDX-License-Identifier: LGPL-2.1-or-later
// What preflight found, the worst first.

import { h } from "./dom.js";

const RANK = { blocker: 0, warning: 1, note: 2 };

export function findings(list) {
  const sorted = [...list].sort((a, b) => (RANK[a.severity] ?? 3) - (RANK[b.severity] ?? 3));
  return h("ul", { class: "findings" }, sorted.map((one) =>
    h("li", { class: "finding", "data-severity": one.severity, "data-code": one.code },
      h("span", { class: "severity" }, one.severity),
      h("div", {}, h("p", {}, one.text), one.remedy ? h("p", { class: "remedy" }, one.remedy) : null))));
}

/* An error, with what can be done about it. */
export function problem(error) {
  return h("div", { class: "problem" }, h("p", {}, error.message),
    error.remedy ? h("p", { class: "remedy" }, error.remedy) : null);
}
