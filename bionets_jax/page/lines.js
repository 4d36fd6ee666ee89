"use strict";

// Lines with bands, drawn; what answers to pointer and keys is LinePlot's. `show` takes {series: [{name, run, x, y,
// low, high, clean}], x, y: labels of the axes, log, reversed, zero: whether y begins there}. What is enlarged is
// kept.
class Lines {
  static count = 0;

  constructor(parent, label) {
    this.view = null;
    this.at = null;
    this.clip = `clip-${Lines.count++}`;
    this.box = make("div", {
      class: "plot",
      tabindex: 0,
      role: "group",
      "aria-roledescription": "plot",
      "aria-label": `${label}. Left and right arrows read values, plus and minus zoom, 0 shows all.`,
      onkeydown: (event) => this.key(event),
      onblur: () => this.point(null),
    });
    this.told = make("div", { class: "told", role: "status", hidden: "" });
    parent.append(this.box);
    new ResizeObserver(() => {
      if (this.what && this.box.clientWidth !== this.width) this.draw();
    }).observe(this.box);
  }

  show(what) {
    this.what = what;
    this.draw();
  }

  reset() {
    this.view = null;
    this.draw();
  }

  // Enlarges a part: of x no more than there is, and of neither so little that rounding would be seen.
  look([left, right], y) {
    this.view = null;
    const [low, high] = this.ranges().x,
      least = Math.max(1e-4 * (high - low), 1e-9 * Math.max(Math.abs(low), Math.abs(high)));
    const wide = Math.min(Math.max(right - left, least), high - low),
      from = Math.min(Math.max((left + right - wide) / 2, low), high - wide);
    if (y && !(y[1] - y[0] > 1e-6 * Math.max(Math.abs(y[0]), Math.abs(y[1])))) y = null;
    if (wide < high - low || y) this.view = { x: [from, from + wide], y };
    this.draw();
  }

  // [lowest, highest] of x, and of y in that range of x.
  ranges() {
    const { series, log } = this.what;
    const all = series.flatMap((one) => one.x);
    let [x0, x1] = this.view ? this.view.x : extent(all);
    if (!all.length) [x0, x1] = [0, 1];
    if (!(x1 > x0)) [x0, x1] = [(x0 || 0) - 0.5, (x0 || 0) + 0.5];
    const values = [];
    for (const one of series) {
      one.x.forEach((x, i) => {
        if (x >= x0 && x <= x1)
          values.push(
            ...[one.y[i], one.low?.[i], one.high?.[i]].filter(
              (v) => v !== undefined && v !== null && (!log || v > 0),
            ),
          );
      });
      if (one.clean !== undefined) values.push(one.clean);
    }
    let [y0, y1] = this.view?.y ?? extent(values);
    if (!Number.isFinite(y0) || !Number.isFinite(y1)) [y0, y1] = log ? [0.1, 1] : [0, 1];
    if (!this.view?.y) {
      if (this.what.zero) y0 = 0;
      if (y0 === y1) [y0, y1] = log ? [y0 / 1.5, y1 * 1.5] : [y0 - 0.5, y1 + 0.5];
      else if (log) {
        const room = (y1 / y0) ** 0.04;
        [y0, y1] = [y0 / room, y1 * room];
      } else {
        const room = 0.04 * (y1 - y0);
        [y0, y1] = [y0 >= 0 && y0 - room < 0 ? 0 : y0 - room, y1 + room];
      }
    }
    return { x: [x0, x1], y: [y0, y1] };
  }

  draw() {
    const { series, x, y, log, reversed } = this.what;
    this.width = this.box.clientWidth;
    const width = Math.max(this.width, 220),
      height = Math.round(Math.min(340, Math.max(230, 0.62 * width)));
    const range = this.ranges(),
      edge = { left: 48, right: 12, top: 26, bottom: 40 };
    this.frame = { left: edge.left, right: width - edge.right, top: edge.top, bottom: height - edge.bottom };
    const f = this.frame,
      position = (value, [low, high], logarithmic) =>
        logarithmic ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    const back = (part, [low, high], logarithmic) =>
      logarithmic ? low * (high / low) ** part : low + part * (high - low);
    const turn = (part) => (reversed ? 1 - part : part);
    this.toX = (value) => f.left + turn(position(value, range.x)) * (f.right - f.left);
    this.toY = (value) => f.bottom - position(value, range.y, log) * (f.bottom - f.top);
    this.fromX = (pixel) => back(turn((pixel - f.left) / (f.right - f.left)), range.x);
    this.fromY = (pixel) => back((f.bottom - pixel) / (f.bottom - f.top), range.y, log);
    const svg = make("svg", {
      width,
      height,
      "aria-hidden": "true",
      onpointerdown: (event) => this.down(event),
      onpointermove: (event) => this.move(event),
      onpointerup: (event) => this.up(event),
      onpointercancel: () => this.cancel(),
      onpointerleave: () => {
        if (!this.start) this.point(null);
      },
      ondblclick: () => this.reset(),
    });
    svg.append(
      make(
        "defs",
        {},
        make(
          "clipPath",
          { id: this.clip },
          make("rect", {
            x: f.left - 3,
            y: f.top - 3,
            width: f.right - f.left + 6,
            height: f.bottom - f.top + 6,
          }),
        ),
      ),
    );
    for (const tick of ticks(...range.y, height / 55, log)) {
      const at = this.toY(tick);
      svg.append(
        make("line", { class: "grid", x1: f.left, x2: f.right, y1: at, y2: at }),
        make("text", { x: f.left - 7, y: at + 4, "text-anchor": "end" }, shown(tick, 6)),
      );
    }
    for (const tick of ticks(...range.x, width / 75)) {
      svg.append(
        make("line", { class: "grid", x1: this.toX(tick), x2: this.toX(tick), y1: f.top, y2: f.bottom }),
        make("text", { x: this.toX(tick), y: f.bottom + 16, "text-anchor": "middle" }, shown(tick, 6)),
      );
    }
    svg.append(
      make("line", { class: "axis", x1: f.left, x2: f.right, y1: f.bottom, y2: f.bottom }),
      make("text", { x: (f.left + f.right) / 2, y: height - 6, "text-anchor": "middle" }, x),
      make("text", { x: 2, y: 13 }, y),
    );
    const lines = make("g", { "clip-path": `url(#${this.clip})` });
    for (const one of series) {
      if (one.high)
        lines.append(make("path", { class: "band", fill: colourOf(one.run), d: this.band(one, log) }));
      if (one.clean !== undefined)
        lines.append(
          make("line", {
            class: "without",
            x1: f.left,
            x2: f.right,
            y1: this.toY(one.clean),
            y2: this.toY(one.clean),
            stroke: colourOf(one.run),
          }),
        );
      const points = this.points(one.x, one.y, log);
      lines.append(
        make("path", {
          class: "line",
          d: points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join(""),
          ...styleOf(one.run),
        }),
      );
      if (points.length <= 50)
        for (const [px, py] of points)
          lines.append(
            make("rect", {
              x: px - 1.8,
              y: py - 1.8,
              width: 3.6,
              height: 3.6,
              rx: 1.8,
              fill: colourOf(one.run),
            }),
          );
    }
    this.marks = make("g", { "clip-path": `url(#${this.clip})` });
    svg.append(lines, this.marks);
    this.box.replaceChildren(svg, this.told);
    this.svg = svg;
    this.point(this.at);
  }

  points(xs, ys, log) {
    return xs
      .map((x, i) => [x, ys[i]])
      .filter(([, y]) => y !== null && (!log || y > 0))
      .map(([x, y]) => [this.toX(x), this.toY(y)]);
  }

  band(one, log) {
    const there = [...this.points(one.x, one.high, log), ...this.points(one.x, one.low, log).reverse()];
    return there.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("") + "Z";
  }
}
