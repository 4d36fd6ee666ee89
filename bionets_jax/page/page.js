"use strict";

// The number that a cell begins with: '7.85 ± 0.22 (8)', '165,786', '52.6 M'; of a time, '3:04' or '1d 02:03:04',
// the seconds; NaN for none.
function numberIn(text) {
  const time = text.match(/^(?:(\d+)d )?(\d+(?::\d\d)+)$/);
  if (time) return time[2].split(":").reduce((sum, part) => 60 * sum + Number(part), 0) + 86400 * (time[1] ?? 0);
  const found = text.match(/^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?: ([MG])\b)?/i);
  return found ? Number(found[1].replaceAll(",", "")) * ({ M: 1e6, G: 1e9 }[found[2]] ?? 1) : NaN;
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells],
    body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = make(
      "button",
      {
        type: "button",
        onclick: () => {
          const up = head.getAttribute("aria-sort") !== "ascending";
          heads.forEach((other) => {
            if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
          });
          head.setAttribute("aria-sort", up ? "ascending" : "descending");
          const rows = [...body.rows].map((row) => [row, row.cells[column].textContent]);
          const numeric = head.classList.contains("number");
          rows.sort(([, a], [, b]) => {
            const [x, y] = [a, b].map(numberIn);
            if (numeric && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y); // without a number: last
            return (up ? 1 : -1) * (numeric ? x - y : a.localeCompare(b, undefined, { numeric: true }));
          });
          body.append(...rows.map(([row]) => row));
        },
      },
      head.textContent,
    );
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
  });
}

function themes(button) {
  const all = [
    ["", "as the system"],
    ["light", "light"],
    ["dark", "dark"],
  ];
  let at = 0;
  button.hidden = false;
  button.addEventListener("click", () => {
    at = (at + 1) % all.length;
    const [theme, name] = all[at];
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.textContent = `Colours: ${name}`;
  });
}

themes(document.getElementById("theme"));
document.querySelectorAll("table.sortable").forEach(makeSortable);
const DATA = JSON.parse(document.getElementById("data").textContent);
for (const [name, draw] of [
  ["curves", drawCurves],
  ["confusion", drawConfusion],
  ["robustness", drawRobustness],
]) {
  const place = document.getElementById(`${name}-here`);
  if (place && DATA[name] && (DATA[name].matrices ?? [0]).length) draw(place, DATA[name]);
}
