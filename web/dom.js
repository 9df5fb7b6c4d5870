// SPDX-License-Identifier: LGPL-2.1-or-later
// Elements. What came from droverd is only ever text here: nothing in this page is made from markup at run time.

/* h("p", {class: "quiet", onclick: f}, "text", node, [more], null) */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...flat(children));
  return node;
}

function flat(children) {
  return children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false);
}

/* Changes nothing that is right already, so that a selection and a screen reader are left alone. */
export function text(node, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
  return node;
}

export function show(node, shown) {
  if (node.hidden === Boolean(shown)) node.hidden = !shown;
  return node;
}

export function attribute(node, name, value) {
  if (value === null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
  return node;
}

/* Children of `parent`, one for each item: those that are there stay (with focus and all), only what changed moves. make(item)
 * returns a node; where it has an update(item), that is called each time. */
export function keyed(parent, items, key, make) {
  const known = parent.keyed || (parent.keyed = new Map());
  const wanted = new Map(items.map((item) => [String(key(item)), item]));
  for (const [name, node] of known)
    if (!wanted.has(name)) {
      node.gone?.();
      node.remove();
      known.delete(name);
    }
  let at = parent.firstElementChild;
  for (const [name, item] of wanted) {
    let node = known.get(name);
    if (!node) {
      node = make(item);
      known.set(name, node);
    }
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    node.update?.(item);
  }
}

/* A table whose cells know their column's name, so that on a narrow screen each row can be a card. */
export function table(label, columns, ...rows) {
  const body = h("tbody", {}, ...rows);
  const head = h("thead", {}, h("tr", {}, columns.map((name) =>
    h("th", { scope: "col", class: name.startsWith("#") ? "number" : null }, name.replace("#", "")))));
  const node = h("table", { "aria-label": label }, head, body);
  node.body = body;
  return node;
}

export function cell(label, props, ...children) {
  return h("td", { "data-label": label, ...props }, ...children);
}

/* [name, value] pairs; those without a value are left out. */
export function facts(pairs, props) {
  return h("dl", { class: "facts", ...props }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

let serial = 0;
export function id(prefix) {
  serial += 1;
  return `${prefix}-${serial}`;
}

/* Tells those who do not see the page what has happened. */
export function say(what) {
  const log = document.getElementById("said");
  log.append(h("p", {}, what));
  while (log.childElementCount > 20) log.firstElementChild.remove();
}
