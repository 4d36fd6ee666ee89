"use strict";

function choice(label, options, chosen, change) {
  const select = make(
    "select",
    { onchange: () => change(select.value) },
    ...options.map(([value, name]) =>
      make("option", { value, ...(value === chosen ? { selected: "" } : {}) }, name),
    ),
  );
  return make("label", {}, `${label} `, select);
}

function reset(plot) {
  return make("button", { type: "button", onclick: () => plot.reset() }, "Show all");
}

// Which runs are drawn, for all plots of curves together.
function runChoice(names, chosen, change) {
  const boxes = names.map((name, run) => {
    const box = make("input", {
      type: "checkbox",
      checked: "",
      onchange: () => {
        box.checked ? chosen.add(run) : chosen.delete(run);
        change();
      },
    });
    return { box, label: make("label", {}, box, swatch(run), name) };
  });
  const all = (on) =>
    make(
      "button",
      {
        type: "button",
        onclick: () => {
          boxes.forEach(({ box }, run) => {
            box.checked = on;
            on ? chosen.add(run) : chosen.delete(run);
          });
          change();
        },
      },
      on ? "All" : "None",
    );
  return make(
    "fieldset",
    {},
    make("legend", {}, "Runs"),
    make(
      "div",
      { class: "choices" },
      ...boxes.map(({ label }) => label),
      ...(names.length > 3 ? [all(true), all(false)] : []),
    ),
  );
}

function drawCurves(place, data) {
  const chosen = new Set(data.runs.keys()),
    panels = [];
  const update = () => panels.forEach((panel) => panel());
  const plots = make("div", { class: "plots" });
  place.append(runChoice(data.runs, chosen, update), plots);
  for (const first of new Set(data.first)) {
    let metric = first;
    const figure = make("figure"),
      log = make("input", { type: "checkbox", onchange: () => show() });
    const controls = make("div", { class: "controls" });
    figure.append(controls);
    plots.append(figure);
    const names = new Map(data.metrics),
      plot = new LinePlot(figure, "Curves over the epochs");
    log.checked = data.log.includes(metric);
    const show = () =>
      plot.show({
        x: "epoch",
        y: names.get(metric) ?? metric,
        log: log.checked,
        series: Object.entries(data.series[metric] ?? {})
          .filter(([run]) => chosen.has(Number(run)))
          .map(([run, [x, y, low, high]]) => ({ name: data.runs[run], run: Number(run), x, y, low, high })),
      });
    controls.append(
      choice("Metric", data.metrics, metric, (value) => {
        metric = value;
        log.checked = data.log.includes(metric);
        plot.view = null;
        show();
      }),
      make("label", {}, log, " logarithmic"),
      reset(plot),
    );
    panels.push(show);
  }
  update();
}

function drawRobustness(place, data) {
  for (const group of data.groups) {
    const plots = make("div", { class: "plots" });
    place.append(
      make("h3", {}, group.title),
      make(
        "div",
        { class: "choices" },
        ...group.runs.map(([name, run]) => make("span", {}, swatch(run), ` ${name}`)),
      ),
      plots,
    );
    for (const panel of group.panels) {
      const figure = make("figure"),
        controls = make("div", { class: "controls" });
      figure.append(controls);
      plots.append(figure);
      const plot = new LinePlot(figure, `${panel.x}: top-1 error`);
      controls.append(make("span", {}, panel.name), reset(plot));
      plot.show({
        x: panel.x,
        y: "top-1 error (%)",
        log: false,
        zero: true,
        reversed: panel.reversed,
        series: panel.series,
      });
    }
  }
}
