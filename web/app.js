// SPDX-License-Identifier: LGPL-2.1-or-later
// The page: which part of it is shown, and its header.

import { vmPage } from "./details.js";
import { say, show, text } from "./dom.js";
import * as format from "./format.js";
import { overview } from "./overview.js";
import { jobPage } from "./report.js";
import { onEnd, start, state, subscribe } from "./state.js";

const LINKS = { connecting: "connecting", live: "live", away: "droverd does not answer; trying again", ended: "this session has ended" };
const main = document.getElementById("main");
let page = null;

function make(path) {
  const [, what, which] = path.match(/^#\/(vm|job)\/(.+)$/) || [];
  if (what === "vm") return vmPage(decodeURIComponent(which));
  return what === "job" ? jobPage(decodeURIComponent(which)) : overview();
}

function route(focus) {
  page?.gone?.();
  page = make(location.hash);
  main.replaceChildren(page);
  page.update();
  scrollTo(0, 0);
  if (focus) main.focus({ preventScroll: true });
}

function header() {
  const link = document.getElementById("link");
  const host = state.version?.host;
  text(document.getElementById("host"), host || (state.version ? "this host" : "…"));
  text(document.getElementById("version"), state.version ? `droverd ${state.version.version}` : "");
  text(link, LINKS[state.link]);
  link.dataset.link = state.link;
  document.title = host ? `${host}, drover` : "drover";
}

function ended() {
  const notice = document.getElementById("notice");
  if (state.link !== "ended" || !notice.hidden) return;
  text(notice, "This session has ended: run drover ui again, and open the link that it prints.");
  show(notice, true);
}

onEnd((job) => say(`${format.kind(job.kind)} of ${job.vm}, ${job.state}: ${format.outcome(job)}`));
subscribe(() => {
  header();
  ended();
  page.update();
});
addEventListener("hashchange", () => route(true));
route(false);
start();
