// SPDX-License-Identifier: LGPL-2.1-or-later
// The other hosts, and what a connection to one finds.

import { post, name } from "./api.js";
import { facts, h, keyed, show, text } from "./dom.js";
import { problem } from "./findings.js";
import * as format from "./format.js";
import { state } from "./state.js";

function found(test) {
  return facts([
    ["round trip", format.ms(test.round_trip_ms)],
    ["to it", format.rate(test.send_mib)],
    ["from it", format.rate(test.receive_mib)],
    ["droverd", test.version],
    ["certificate", test.certificate],
    ["TLS", test.tls],
  ]);
}

function item(peer) {
  const where = h("span", { class: "quiet path" });
  const result = h("div", { role: "status" });
  const test = h("button", { type: "button", "data-do": "test", "aria-label": `Test ${peer.name}` }, "Test");
  const node = h("li", { "data-peer": peer.name }, h("div", { class: "peer" }, h("strong", {}, peer.name), where, test), result);
  test.addEventListener("click", async () => {
    test.disabled = true;
    result.replaceChildren(h("p", { class: "quiet" }, "connecting, measuring …"));
    try {
      result.replaceChildren(found(await post(`/v1/peers/${name(peer.name)}/test`)));
    } catch (error) {
      result.replaceChildren(problem(error));
    }
    test.disabled = false;
  });
  node.update = (now) => text(where, `${now.host}:${now.port}`);
  return node;
}

export function peers() {
  const list = h("ul", { class: "plain" });
  const none = h("p", { class: "quiet" }, "None. On the host: ", h("code", {}, "drover peer add NAME HOST"));
  const node = h("section", { "aria-labelledby": "peers-title" }, h("h2", { id: "peers-title" }, "Peers"), list, none);
  node.update = () => {
    keyed(list, state.peers, (peer) => peer.name, item);
    show(none, state.peers.length === 0 && state.version !== null);
  };
  return node;
}
