// What check_page.py does with a page, as its reader would: sorts, reads by keys, enlarges by dragging. Its value is a
// list of what is wrong.
(async () => {
  const wrong = [];
  const frame = () => new Promise(requestAnimationFrame);
  await frame();
  await frame(); // plots are drawn in the first one
  const cells = { "7.85 ± 0.22 (8)": 7.85, "165,786": 165786, "52.6 M": 52.6e6, "+0.15": 0.15, "3:04": 184 };
  Object.assign(cells, { "2:03:04": 7384, "1d 02:03:04": 93784, "-": NaN });
  for (const [text, number] of Object.entries(cells))
    if (!Object.is(numberIn(text), number)) wrong.push(`'${text}' is sorted as ${numberIn(text)}`);
  const button = document.querySelector("table.sortable th.number button");
  if (button) {
    const column = button.closest("th").cellIndex,
      body = button.closest("table").tBodies[0];
    const values = () =>
      [...body.rows].map((row) => numberIn(row.cells[column].textContent)).filter((n) => !Number.isNaN(n));
    button.click();
    const up = values();
    button.click();
    const down = values();
    if (up.some((n, i) => i && n < up[i - 1]) || down.some((n, i) => i && n > down[i - 1]))
      wrong.push("a table does not sort");
  }
  for (const plot of document.querySelectorAll(".plot")) {
    const key = (name) => plot.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    const paths = () => [...plot.querySelectorAll("path")].map((path) => path.getAttribute("d")).join("");
    const before = paths();
    if (!before || before.includes("NaN")) {
      wrong.push("a plot without lines");
      continue;
    }
    key("ArrowRight");
    if (plot.querySelector(".told").hidden) wrong.push("a plot does not answer to keys");
    const svg = plot.querySelector("svg"),
      box = svg.getBoundingClientRect();
    svg.setPointerCapture = () => {}; // there is no such pointer
    for (const [type, x] of [
      ["pointerdown", 90],
      ["pointermove", 160],
      ["pointerup", 160],
    ])
      svg.dispatchEvent(
        new PointerEvent(type, {
          clientX: box.left + x,
          clientY: box.top + 60,
          pointerId: 1,
          button: 0,
          bubbles: true,
        }),
      );
    if (paths() === before) wrong.push("a plot does not zoom");
    key("Escape");
    if (paths() !== before) wrong.push("a plot does not go back");
    key("End");
    for (let i = 0; i < 80; i++) key("+"); // as of a key that is held down
    const told = [...plot.querySelectorAll("svg > text")].map((text) => text.textContent);
    if (/NaN|Infinity/.test(paths()) || told.length < 4 || told.some((text) => /NaN|Infinity/.test(text)))
      wrong.push("a plot breaks when it is much enlarged");
    for (let i = 0; i < 99; i++) key("-");
    if (paths() !== before) wrong.push("a plot shows more than there is");
    key("Escape");
  }
  for (const box of document.querySelectorAll(".choices input")) box.click();
  if (document.querySelector("#curves path")) wrong.push("a run that is not chosen is drawn");
  for (const box of document.querySelectorAll(".choices input")) box.click();
  if (document.querySelector("#curves") && !document.querySelector("#curves path"))
    wrong.push("a run that is chosen is not drawn");
  const matrix = document.querySelector(".matrix");
  if (matrix) {
    matrix.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    if (!/ of /.test(document.querySelector(".says").textContent))
      wrong.push("the matrix does not answer to keys");
  }

  // The contrast of every text with what is behind it: at least 4.5 to 1 (WCAG 2.1).
  const parts = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = parts(colour)
      .slice(0, 3)
      .map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opaque = (colour) => parts(colour).length === 3 || parts(colour)[3] > 0;
  const skipped = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TITLE"]);
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some(
      (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim(),
    );
    if (!says || skipped.has(element.nodeName.toUpperCase())) continue;
    if (element.classList.contains("inside")) continue; // on a field of the matrix, by whose lightness it is chosen
    const style = getComputedStyle(element);
    let behind = element;
    while (behind && !opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const two = [
      element instanceof SVGElement ? style.fill : style.color,
      getComputedStyle(behind ?? document.body).backgroundColor,
    ].map(luminance);
    const ratio = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    if (ratio < 4.5)
      wrong.push(`contrast ${ratio.toFixed(2)}: ${element.nodeName} "${element.textContent.slice(0, 30)}"`);
  }
  return [...new Set(wrong)];
})();
