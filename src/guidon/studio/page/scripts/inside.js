// Look inside: what changed in words, guidance by channel and step, the metrics with the truth beside them.

const lookInside = () => {
  const whole = result.settings.length > 0;
  $("inside").hidden = !whole;
  if (!whole) return;
  $("changes").replaceChildren(...(result.changes ?? []).flatMap((one) => [
    make("h3", { textContent: `From A to ${one.letter}` }),
    make("ul", {}, ...one.lines.map((line) => make("li", { textContent: line }))),
    ...(one.note ? [make("p", { className: "facts", textContent: one.note })] : []),
  ]));
  const top = Math.max(...result.settings.flatMap((own) => own.trace?.difference.flat() ?? [0]), 1e-9);
  $("traces").replaceChildren(...result.settings.map((own) => traceOf(own, top)));
  tabulate();
};

const traceOf = (own, top) => {
  const card = make("div", { className: "card" }, make("h4", {}, make("b", { className: "letter", textContent: own.letter }), ` ${own.words}`));
  if (!own.trace) {
    card.append(make("p", { className: "facts", textContent: own.lossy?.includes("distilled") ? "The fast settings run one branch: there is no difference of two to show." : "No step had two branches." }));
    return card;
  }
  const rows = make("div", { className: "heat", role: "img", ariaLabel: "" }), steps = own.trace.timestep.length, means = [];
  own.trace.difference.forEach((values, channel) => {
    const mean = values.reduce((sum, one) => sum + one, 0) / steps, guided = own.trace.scale[channel];
    means.push(`channel ${channel}: ${number(mean)}`);
    const drawn = draws("svg", { viewBox: `0 0 ${steps} 22`, preserveAspectRatio: "none", "aria-hidden": "true" });
    values.forEach((value, k) => {
      drawn.append(draws("rect", { class: "on", x: k, y: 0, width: 1.02, height: 17, "fill-opacity": (0.04 + 0.96 * (value / top)).toFixed(3) }));
      if (guided[k] !== 1) drawn.append(draws("rect", { class: "on", x: k, y: 19, width: 1.02, height: 3 }));
    });
    rows.append(make("span", { textContent: `channel ${channel}` }), drawn, make("span", { textContent: number(mean) }));
  });
  rows.ariaLabel = `Mean norm of cond minus uncond, ${means.join(", ")}`;
  card.append(rows, make("div", { className: "ends" }, make("span", { textContent: `noise, timestep ${number(own.trace.timestep[0], 4)}` }), make("span", { textContent: `timestep ${number(own.trace.timestep.at(-1), 4)}` })));
  const button = make("button", { type: "button", textContent: "What the decoder shows of it", hidden: !result.run });
  const shown = make("div", { role: "status" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const job = await follow(await ask("api/spectrum", { run: result.run, number: own.number }), (state) => (shown.textContent = sayWork(state)));
      shown.replaceChildren(job.state === "done" ? influenceOf(job.result) : make("p", { className: "facts", textContent: job.message || job.state }));
    } catch (error) {
      shown.replaceChildren(make("p", { className: "facts", textContent: error.message }));
    }
    button.disabled = false;
  });
  card.append(make("p", {}, button), shown);
  return card;
};
const influenceOf = (found) => {
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "channel" }), make("th", { scope: "col", className: "right", textContent: "energy" }), ...found.aspects.map((one) => make("th", { scope: "col", className: "right", textContent: one.name, title: one.words })))));
  table.append(make("tbody", {}, ...found.share.map((share, k) => make("tr", {}, make("th", { scope: "row", textContent: k }), make("td", { className: "right", textContent: share === null ? "undefined" : `${Math.round(100 * share)}%` }), ...found.influence[k].map((one) => make("td", { className: "right", textContent: number(one) }))))));
  return make("div", {}, make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "What the decoder shows" }, table),
    make("p", { className: "facts", textContent: "energy: share of the squared difference; the rest: RMS change of the video in 1/1000 per unit of scale, if the step were the last one." }));
};

const SHARE = "share";
const written = (values, unit) => {
  const known = (values ?? []).filter((one) => one !== null);
  if (known.length === 0) return "undefined";
  const mean = known.reduce((sum, one) => sum + one, 0) / known.length;
  return unit === SHARE ? `${number(100 * mean)}%` : Math.abs(mean) < 1e-6 && mean !== 0 ? "about 0" : number(mean);
};
const tabulate = () => {
  $("unmeasured").textContent = result.unmeasured ? `Nothing is measured: ${result.unmeasured}` : (result.seeds > 1 ? "Means over the clips." : "") + (result.truth ? " The last column is an exact drawing of what the prompt asks for, measured in the same way." : "");
  const table = $("metrics");
  table.parentElement.hidden = result.metrics.length === 0;
  const heads = [...result.settings.map((own) => own.letter), ...(result.truth ? ["truth"] : [])];
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "metric" }), ...heads.map((text) => make("th", { scope: "col", className: "right", textContent: text })))),
    make("tbody", {}, ...result.metrics.map((metric) => make("tr", {},
      make("th", { scope: "row", title: metric.meaning }, metric.label, make("small", { textContent: `${metric.unit === SHARE ? "%" : metric.unit}${metric.better ? `, ${metric.better} is better` : ""}` })),
      ...result.settings.map((own) => make("td", { className: "right", textContent: written(own.values?.[metric.name], metric.unit) })),
      ...(result.truth ? [make("td", { className: "right truth-col", textContent: written(result.truth.values[metric.name], metric.unit) })] : [])))));
};
