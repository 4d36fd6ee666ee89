"use strict";

// A plot that is read and enlarged: by pointer, by dragging over a part, and by keys.
class LinePlot extends Lines {
  // Reads the values at the x nearest to one; null for none.
  point(x) {
    this.at = x;
    this.marks?.replaceChildren();
    this.told.hidden = x === null;
    if (x === null || !this.what.series.length) return;
    const near = this.what.series.map((one) =>
      one.x.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(one.x[best] - x) ? i : best), 0),
    );
    const first = this.what.series.reduce(
      (best, one, s) =>
        Math.abs(one.x[near[s]] - x) < Math.abs(this.what.series[best].x[near[best]] - x) ? s : best,
      0,
    );
    const here = this.what.series[first].x[near[first]];
    this.marks.append(
      make("line", {
        class: "cursor",
        x1: this.toX(here),
        x2: this.toX(here),
        y1: this.frame.top,
        y2: this.frame.bottom,
      }),
    );
    this.told.replaceChildren(
      make("b", {}, `${this.what.x} ${shown(here)}`),
      ...this.what.series.map((one, s) => {
        const i = near[s],
          other = one.x[i] === here ? "" : ` (at ${shown(one.x[i])})`;
        const band = one.low ? ` (${shown(one.low[i])} to ${shown(one.high[i])})` : "";
        return make(
          "div",
          {},
          swatch(one.run),
          make(
            "span",
            {},
            `${one.name}: `,
            make("b", {}, one.y[i] === null ? "none" : shown(one.y[i])),
            band + other,
          ),
        );
      }),
    );
  }

  here(event) {
    const box = this.svg.getBoundingClientRect(),
      f = this.frame;
    return [
      Math.min(f.right, Math.max(f.left, event.clientX - box.left)),
      Math.min(f.bottom, Math.max(f.top, event.clientY - box.top)),
    ];
  }

  down(event) {
    if (event.button !== 0) return;
    this.start = this.here(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  move(event) {
    const [x, y] = this.here(event);
    if (!this.start) {
      this.point(this.fromX(x));
      return;
    }
    this.told.hidden = true;
    this.marks.replaceChildren(
      make("rect", {
        class: "drag",
        x: Math.min(x, this.start[0]),
        width: Math.abs(x - this.start[0]),
        ...this.tall(y),
      }),
    );
  }

  // A drag along the axis alone is for x, and y follows the lines.
  tall(y) {
    const f = this.frame,
      high = Math.abs(y - this.start[1]) > 12;
    return high
      ? { y: Math.min(y, this.start[1]), height: Math.abs(y - this.start[1]) }
      : { y: f.top, height: f.bottom - f.top };
  }

  up(event) {
    if (!this.start) return;
    const [x, y] = this.here(event),
      [x0, y0] = this.start;
    this.start = null;
    if (Math.abs(x - x0) < 5) {
      this.draw();
      return;
    }
    const sorted = (a, b) => (a < b ? [a, b] : [b, a]);
    this.look(
      sorted(this.fromX(x0), this.fromX(x)),
      Math.abs(y - y0) > 12 ? sorted(this.fromY(y0), this.fromY(y)) : null,
    );
  }

  cancel() {
    this.start = null;
    this.draw();
  }

  key(event) {
    const xs = [...new Set(this.what.series.flatMap((one) => one.x))].sort((a, b) => a - b);
    if (!xs.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const nearest = () =>
      xs.reduce((best, x, i) => (Math.abs(x - this.at) < Math.abs(xs[best] - this.at) ? i : best), 0);
    const step = this.what.reversed ? -1 : 1,
      to = (i) => this.point(xs[Math.min(xs.length - 1, Math.max(0, i))]);
    const [low, high] = this.ranges().x,
      middle = this.at ?? (low + high) / 2;
    const zoom = (by) => this.look([middle - (middle - low) * by, middle + (high - middle) * by], null);
    const actions = {
      ArrowRight: () => to(this.at === null ? (step > 0 ? 0 : xs.length - 1) : nearest() + step),
      ArrowLeft: () => to(this.at === null ? (step > 0 ? xs.length - 1 : 0) : nearest() - step),
      Home: () => to(0),
      End: () => to(xs.length - 1),
      "+": () => zoom(0.6),
      "=": () => zoom(0.6),
      "-": () => zoom(1 / 0.6),
      0: () => this.reset(),
      Escape: () => {
        this.point(null);
        this.reset();
      },
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}
