// SPDX-License-Identifier: LGPL-2.1-or-later
// Plots over time by uPlot, and the bars of a pause. Colours come from the style sheet, so that they follow the scheme.

import { h, text } from "./dom.js";
import * as format from "./format.js";

const HEIGHT = 132;
const dark = matchMedia("(prefers-color-scheme: dark)");

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function seconds(value) {
  return value >= 120 ? `${Math.round(value / 60)} min` : `${Number(value.toFixed(2))} s`;
}

const POWERS = Array.from({ length: 48 }, (_, i) => 2 ** i);

function axis(size, values, more) {
  return {
    ...more,
    stroke: color("--quiet"),
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
    size,
    gap: 4,
    values,
  };
}

function options(plot, width) {
  return {
    width,
    height: HEIGHT,
    padding: [6, 10, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: false }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
    axes: [axis(24, (_, ticks) => ticks.map(seconds)), axis(66, (_, ticks) => ticks.map(plot.unit), { space: 34, ...(plot.unit === format.bytes ? { incrs: POWERS } : {}) })],
    series: [{}, ...plot.series.map((one) => ({
      label: one.label,
      stroke: color(one.color),
      width: 1.75,
      dash: one.dash,
      fill: one.fill ? `${color(one.color)}22` : undefined,
      spanGaps: true,
      points: { show: false },
    }))],
  };
}

function columns(plot, samples) {
  return [samples.map((one) => one.t_ms / 1000), ...plot.series.map((one) => samples.map((sample) => sample[one.member] ?? null))];
}

function has(plot, samples) {
  return plot.series.some((one) => samples.some((sample) => typeof sample[one.member] === "number"));
}

/* The last value of each series stands beside its name: the plot is for the eye, that is for reading. */
function caption(plot) {
  const values = plot.series.map(() => h("b", {}));
  const keys = plot.series.map((one, i) => h("span", { class: "key", "data-color": one.color }, one.label, " ", values[i]));
  const node = h("figcaption", {}, keys);
  node.update = (samples) => plot.series.forEach((one, i) => {
    const last = samples.findLast((sample) => typeof sample[one.member] === "number");
    text(values[i], last ? plot.unit(last[one.member]) : "");
    keys[i].hidden = !last;
  });
  return node;
}

/* A figure with update(samples), and gone() when it is taken away. */
function figure(plot) {
  const head = caption(plot);
  const box = h("div", { class: "canvas" });
  const node = h("figure", { class: "plot", role: "img", "aria-label": plot.title }, head, box);
  let made = null;
  let samples = [];

  const make = () => {
    made?.destroy();
    made = null;
    if (box.clientWidth > 40 && samples.length > 1) made = new uPlot(options(plot, box.clientWidth), columns(plot, samples), box);
  };
  const observer = new ResizeObserver(() => (made ? made.setSize({ width: box.clientWidth, height: HEIGHT }) : make()));
  observer.observe(box);
  dark.addEventListener("change", make);
  node.update = (now) => {
    samples = now;
    node.hidden = !has(plot, samples);
    head.update(samples);
    if (made) made.setData(columns(plot, samples));
    else make();
  };
  node.gone = () => {
    observer.disconnect();
    dark.removeEventListener("change", make);
    made?.destroy();
  };
  return node;
}

const PLOTS = [
  { title: "Bytes that remain, over time", unit: format.bytes,
    series: [{ label: "remaining", member: "remaining_bytes", color: "--a", fill: true }] },
  { title: "Transfer rate and dirty rate, over time", unit: format.rate,
    series: [{ label: "rate", member: "rate_mib", color: "--a" }, { label: "dirty rate", member: "dirty_mib", color: "--b", dash: [4, 3] }] },
  { title: "Expected pause, over time", unit: format.ms,
    series: [{ label: "expected pause", member: "expected_pause_ms", color: "--c" }] },
  { title: "Bytes of disks, over time", unit: format.bytes,
    series: [{ label: "disks copied", member: "disk_bytes_done", color: "--a", fill: true }, { label: "of", member: "disk_bytes_total", color: "--quiet", dash: [2, 3] }] },
];

export function plots() {
  const figures = PLOTS.map(figure);
  const node = h("div", { class: "plots" }, figures);
  node.update = (samples) => {
    for (const one of figures) one.update(samples);
    node.hidden = samples.length < 2 || figures.every((one) => one.hidden);
  };
  node.gone = () => figures.forEach((one) => one.gone());
  return node;
}

/* Parts of one whole as a bar, with their names and figures below. CSS has the widths by a property, which the page's policy
 * lets a script set. */
export function stacked(label, parts) {
  const total = parts.reduce((all, part) => all + part.ms, 0) || 1;
  const bar = h("div", { class: "stack", role: "img", "aria-label": `${label}: ${parts.map((one) => `${one.name} ${format.ms(one.ms)}`).join(", ")}` },
    parts.map((part, i) => {
      const piece = h("span", { "data-part": i % 8 });
      piece.style.flexGrow = String(Math.max(part.ms / total, 0.004));
      return piece;
    }));
  const names = h("ul", { class: "stack-names" }, parts.map((part, i) =>
    h("li", { "data-part": i % 8 }, part.name, " ", h("b", {}, format.ms(part.ms)))));
  return h("div", {}, bar, names);
}
