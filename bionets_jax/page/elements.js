"use strict";

// Elements are made by name and filled with text alone: nothing that a run says is ever read as HTML.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "text", "title", "defs", "clipPath"].includes(name);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const DASHES = ["", "7 4", "7 3 2 3", "2 3"];
const COLOURS = 7;
const colourOf = (run) => `var(--run-${run % COLOURS})`;
const styleOf = (run) => ({
  stroke: colourOf(run),
  "stroke-dasharray": DASHES[Math.floor(run / COLOURS) % 4] || null,
});

function swatch(run) {
  const svg = make("svg", { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" });
  svg.append(make("line", { x1: 0, x2: 22, y1: 4, y2: 4, ...styleOf(run) }));
  return svg;
}

// Of a list that may be too long for the arguments of Math.min.
function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function shown(number, digits = 4) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e5 || size < 1e-3)
    return number
      .toExponential(digits - 2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return String(Number(number.toPrecision(digits)));
}

function ticks(low, high, count, log) {
  if (log) {
    const from = Math.floor(Math.log10(low)),
      to = Math.ceil(Math.log10(high)),
      out = [];
    const parts = to - from > 4 ? [1] : to - from > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    const every = Math.max(1, Math.ceil((to - from) / 8));
    for (let power = from; power <= to; power += every) for (const part of parts) out.push(part * 10 ** power);
    const inside = out.filter((tick) => tick >= low && tick <= high);
    if (inside.length > 1) return inside; // else those of a linear axis, which this part nearly is
  }
  const rough = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power,
    out = [];
  const first = Math.ceil(low / step - 1e-9),
    last = Math.floor(high / step + 1e-9);
  for (let i = 0; i <= last - first; i++) out.push(Number(((first + i) * step).toPrecision(12)));
  return out;
}
