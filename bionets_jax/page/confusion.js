"use strict";

// Colours of the map cividis (Nunez, Anderton and Renslow 2018) at even distances: its lightness rises evenly, with any
// colour vision.
const CIVIDIS = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];

function cividis(part) {
  const at = Math.min(1, Math.max(0, part)) * (CIVIDIS.length - 1),
    i = Math.min(CIVIDIS.length - 2, Math.floor(at));
  return CIVIDIS[i].map((from, c) => Math.round(from + (at - i) * (CIVIDIS[i + 1][c] - from)));
}

function drawConfusion(place, data) {
  let at = 0;
  const matrix = make("div", {
    class: "matrix",
    tabindex: 0,
    role: "group",
    "aria-roledescription": "confusion matrix",
  });
  const says = make("p", { class: "says", role: "status" });
  const show = () => new Matrix(matrix, says, data.matrices[at]);
  if (data.matrices.length > 1) {
    place.append(
      make(
        "div",
        { class: "controls" },
        choice(
          "Network",
          data.matrices.map((one, i) => [String(i), one.name]),
          "0",
          (value) => {
            at = Number(value);
            show();
          },
        ),
      ),
    );
  } else place.append(make("p", {}, data.matrices[0].name));
  place.append(matrix, says);
  show();
}

class Matrix {
  constructor(box, says, { name, classes, counts }) {
    Object.assign(this, { box, says, classes, counts, at: null });
    this.totals = counts.map((row) => row.reduce((sum, n) => sum + n, 0));
    box.setAttribute("aria-label", `Confusion matrix of ${name}. Arrows go from field to field.`);
    box.onkeydown = (event) => this.key(event);
    this.says.textContent = "Point at a field to read it.";
    this.draw();
    box.sized?.disconnect();
    box.sized = new ResizeObserver(() => {
      if (box.clientWidth !== this.width) this.draw();
    });
    box.sized.observe(box);
  }

  draw() {
    const { classes, counts, totals } = this,
      count = classes.length;
    const short = (text) => (text.length > 16 ? `${text.slice(0, 15)}\u2026` : text);
    const longest = Math.max(...classes.map((text) => short(text).length));
    this.width = this.box.clientWidth;
    // As large as there is room, but names stay readable: of many classes the matrix scrolls in its box.
    const cell = Math.floor(Math.min(42, Math.max(10, (this.width - 36 - longest * 7) / count)));
    const font = Math.min(12, cell - 1);
    const room = Math.ceil(longest * font * 0.62) + 10,
      left = room + 18,
      top = count * cell;
    this.left = left;
    this.cell = cell;
    // The names of columns are upright where they fit, so that they can be read.
    const turned = longest * font * 0.62 > cell - 3,
      low = turned ? room : 18,
      width = left + top + 8,
      height = top + low + 66;
    const svg = make("svg", {
      width,
      height,
      "aria-hidden": "true",
      onpointermove: (event) => this.over(event),
      onpointerleave: () => this.choose(null),
    });
    svg.append(make("rect", { class: "ground", x: left, y: 0, width: top, height: top }));
    classes.forEach((text, i) => {
      const middle = (i + 0.5) * cell;
      svg.append(
        styled(
          make(
            "text",
            { x: left - 6, y: middle, "text-anchor": "end", "dominant-baseline": "central" },
            short(text),
          ),
          font,
        ),
      );
      const at = left + middle;
      svg.append(
        styled(
          make(
            "text",
            turned
              ? {
                  transform: `translate(${at} ${top + 6}) rotate(-90)`,
                  "text-anchor": "end",
                  "dominant-baseline": "central",
                }
              : { x: at, y: top + 14, "text-anchor": "middle" },
            short(text),
          ),
          font,
        ),
      );
    });
    counts.forEach((row, true_) =>
      row.forEach((n, other) => {
        if (!n) return;
        const part = n / totals[true_],
          colour = cividis(Math.sqrt(part));
        svg.append(
          make("rect", {
            x: left + other * cell,
            y: true_ * cell,
            width: cell - 1,
            height: cell - 1,
            fill: `rgb(${colour})`,
          }),
        );
        if (cell < 22) return;
        const bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 115;
        const text = make(
          "text",
          { class: "inside", x: left + (other + 0.5) * cell - 0.5, y: (true_ + 0.5) * cell },
          cell > 27 && part < 0.0995 ? (100 * part).toFixed(1) : (100 * part).toFixed(0),
        );
        text.style.fill = bright ? "#000000" : "#ffffff";
        svg.append(text);
      }),
    );
    svg.append(
      make("text", { x: left + top / 2, y: top + low + 14, "text-anchor": "middle" }, "predicted class"),
      make(
        "text",
        { transform: `translate(12 ${top / 2}) rotate(-90)`, "text-anchor": "middle" },
        "true class",
      ),
    );
    this.scale(svg, left, top + low + 30, Math.min(top, 240));
    this.mark = make("rect", { class: "chosen", width: cell - 1, height: cell - 1, visibility: "hidden" });
    svg.append(this.mark);
    this.box.replaceChildren(svg);
    this.svg = svg;
    this.choose(this.at);
  }

  // The colours go with the square root, so that rare mistakes are seen beside what is right.
  scale(svg, x, y, width) {
    const steps = 60;
    for (let i = 0; i < steps; i++)
      svg.append(
        make("rect", {
          x: x + (i * width) / steps,
          y,
          width: width / steps + 0.5,
          height: 10,
          fill: `rgb(${cividis(i / (steps - 1))})`,
        }),
      );
    for (const part of width < 150 ? [0, 25, 100] : [0, 1, 10, 25, 50, 100])
      svg.append(
        make(
          "text",
          {
            x: x + width * Math.sqrt(part / 100),
            y: y + 24,
            "text-anchor": "middle",
          },
          part === 100 ? "100 %" : String(part),
        ),
      );
  }

  over(event) {
    const box = this.svg.getBoundingClientRect(),
      count = this.classes.length;
    const [row, column] = [event.clientY - box.top, event.clientX - box.left - this.left].map((pixel) =>
      Math.floor(pixel / this.cell),
    );
    this.choose(row >= 0 && column >= 0 && row < count && column < count ? [row, column] : null);
  }

  choose(at) {
    this.at = at;
    this.mark.setAttribute("visibility", at ? "visible" : "hidden");
    if (!at) return;
    const [row, column] = at,
      n = this.counts[row][column],
      total = this.totals[row];
    this.mark.setAttribute("x", this.left + column * this.cell);
    this.mark.setAttribute("y", row * this.cell);
    const share = total ? ` (${((100 * n) / total).toFixed(1)} %)` : "";
    this.says.textContent = `${this.classes[row]} taken for ${this.classes[column]}: ${n} of ${total}${share}`;
  }

  key(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const last = this.classes.length - 1,
      [row, column] = this.at ?? [0, -1 + (move[1] === 1 ? 0 : 1)];
    this.choose([row + move[0], column + move[1]].map((i) => Math.min(last, Math.max(0, i))));
    this.mark.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
  }
}

function styled(text, size) {
  text.style.fontSize = `${size}px`;
  return text;
}
