// The form of a setting: a switch and a scale for each channel, the rule, the timing as a curve, the sampler, the steps.

const TIMINGS = { "": "the model's own", constant: "every step", interval: "an interval", linear: "linear ramp", cosine: "cosine ramp", exponential: "exponential", oscillation: "every second step" };
const weightOf = (timing) => {
  const [kind, values = ""] = (timing || model?.timing || "constant").split(":"), [from, to] = values.split(",").map(Number);
  return {
    constant: () => 1,
    interval: (p) => (p >= from && p <= to ? 1 : 0),
    linear: (p) => 2 * p,
    cosine: (p) => 1 - Math.cos(Math.PI * p),
    exponential: (p) => Math.exp((values ? from : Math.LN2) * p),
    oscillation: (p, n) => (n < (values ? from : 10) || n % 2 === 0 ? 1 : 0),
  }[kind] ?? (() => 1);
};
const curveOf = (own) => {
  const weight = weightOf(own.fast ? "constant" : own.timing), steps = own.steps || model?.steps || 50, points = 120;
  const values = Array.from({ length: points + 1 }, (_, k) => weight(k / points, Math.floor((k / points) * steps)));
  const top = Math.max(...values, 1), line = values.map((value, k) => `${k === 0 ? "M" : "L"}${(200 * k) / points} ${42 - (36 * value) / top}`).join("");
  const drawn = draws("svg", { viewBox: "0 0 200 46", preserveAspectRatio: "none", role: "img", "aria-label": "How strongly guidance acts over sampling" });
  drawn.append(draws("path", { class: "area", d: `${line}L200 42L0 42Z` }), draws("path", { class: "base", d: "M0 42H200" }), draws("path", { class: "line", d: line, "vector-effect": "non-scaling-stroke" }));
  return drawn;
};
// As the server says it after a run; until then, short.
const inWords = (own) => {
  const on = own.channels.map((one, k) => (one ? k : -1)).filter((k) => k >= 0), scales = [...new Set(on.map((k) => own.scales[k]))];
  const first = on.every((one, k) => one === k), last = on.at(-1);
  const where = on.length === own.channels.length ? "all channels" : on.length === 1 ? `channel ${last} alone` : first ? `the first ${on.length} channels` : `channels ${on.slice(0, -1).join(", ")} and ${last}`;
  const words = on.length === 0 || scales.every((one) => one === 1) ? "no guidance" : scales.length > 1 ? `scales ${own.scales.map((one, k) => (own.channels[k] ? one : 1)).join(", ")}` : `scale ${scales[0]} on ${where}`;
  return [words, own.guidance && own.guidance !== "cfg" ? own.guidance : "", own.fast ? "fast" : own.timing, own.sampler, own.steps ? `${own.steps} steps` : ""].filter(Boolean).join(", ");
};

const formOf = (own, at) => {
  const id = (name) => `${name}-${at}`, changed = () => (refresh(), saySettings());

  // a switch and a scale for each channel
  const channels = make("fieldset", { ariaLabel: `Latent channels of setting ${LETTERS[at]}` });
  own.channels.forEach((_, k) => {
    const on = make("input", { type: "checkbox", id: id(`on${k}`), checked: own.channels[k] });
    const slide = make("input", { type: "range", min: 0, max: 10, step: 0.25, value: own.scales[k], ariaLabel: `Scale of channel ${k}, setting ${LETTERS[at]}` });
    const exact = make("input", { type: "number", min: -100, max: 1000, step: "any", value: own.scales[k], id: id(`scale${k}`), ariaLabel: `Scale of channel ${k} as a number, setting ${LETTERS[at]}` });
    const set = (value, every) => {
      if (!Number.isFinite(value)) return void (exact.value = own.scales[k]);
      own.scales = own.scales.map((old, other) => (other === k || every ? value : old));
      channels.querySelectorAll(".channel").forEach((row, other) => {
        if (other === k || every) row.querySelectorAll("[type=range], [type=number]").forEach((input) => input.value = value);
      });
      changed();
    };
    on.addEventListener("change", () => ((own.channels = own.channels.with(k, on.checked)), changed()));
    slide.addEventListener("input", () => set(Number(slide.value), together.checked));
    exact.addEventListener("change", () => set(exact.valueAsNumber, together.checked));
    channels.append(make("div", { className: "channel" }, make("label", { htmlFor: on.id }, on, ` channel ${k}`), slide, exact));
  });
  const together = make("input", { type: "checkbox", id: id("together"), checked: new Set(own.scales).size === 1 });
  channels.append(make("label", { htmlFor: together.id }, together, " one scale for all"));

  // the rest
  const fields = make("div", { className: "fields" });
  const field = (name, label, input) => {
    input.id = id(name);
    fields.append(make("label", { htmlFor: input.id, textContent: label }), input);
    return input;
  };
  const rule = field("rule", "Rule", make("input", { type: "text", value: own.guidance ?? "cfg", maxLength: 200, spellcheck: false }));
  rule.setAttribute("list", "rules");
  rule.addEventListener("change", () => ((own.guidance = rule.value.trim() || "cfg"), changed()));

  const [kind0, values0 = ""] = (own.timing ?? "").split(":");
  const kind = field("timing", "Timing", make("select", {}, ...Object.entries(TIMINGS).map(([value, text]) => new Option(text, value, false, value === kind0))));
  const [first0, second0] = values0.split(",");
  const first = make("input", { type: "number", step: "any", ariaLabel: "First number of the timing" });
  const second = make("input", { type: "number", step: "any", ariaLabel: "Second number of the timing" });
  const numbers = make("div", { className: "two-numbers" }, first, second);
  fields.append(make("span"), numbers);
  const DEFAULTS = { interval: ["0", "0.5"], exponential: ["0.7"], oscillation: ["10"] };
  const setTiming = () => {
    const needs = DEFAULTS[kind.value]?.length ?? 0;
    own.timing = kind.value === "" ? null : kind.value + (needs ? `:${[first, second].slice(0, needs).map((input) => input.value).join(",")}` : "");
    changed();
  };
  const chooseTiming = () => {
    const fresh = DEFAULTS[kind.value] ?? [];
    [first.value, second.value] = [fresh[0] ?? "", fresh[1] ?? ""];
    setTiming();
  };
  [first.value, second.value] = [first0 ?? "", second0 ?? ""];
  kind.addEventListener("change", chooseTiming);
  for (const input of [first, second]) input.addEventListener("change", setTiming);
  const curve = make("div", { className: "curve" });
  fields.append(curve);

  const sampler = field("sampler", "Sampler", make("select", {}, new Option(`the model's own${model?.sampler ? `: ${model.sampler}` : ""}`, ""), ...(model?.samplers ?? []).map((name) => new Option(name, name, false, name === own.sampler))));
  sampler.addEventListener("change", () => ((own.sampler = sampler.value || null), changed()));
  const steps = field("steps", "Steps", make("input", { type: "number", min: 1, max: 10000, step: 1, value: own.steps ?? "", placeholder: model?.steps ?? "" }));
  steps.addEventListener("change", () => ((own.steps = steps.value === "" ? null : Math.round(steps.valueAsNumber)), changed()));
  const negative = field("negative", "Not", make("input", { type: "text", value: own.negative_prompt ?? "", maxLength: 1000, placeholder: "what to steer away from" }));
  negative.addEventListener("change", () => ((own.negative_prompt = negative.value.trim() || null), changed()));
  const fast = make("input", { type: "checkbox", id: id("fast"), checked: own.fast ?? false });
  fast.addEventListener("change", () => {
    const usual = () => (own.fast ? model.fast_scale : model.scale) || 1, before = usual();
    own.fast = fast.checked;
    if (own.scales.every((one) => one === before)) { // nobody chose another: the fast settings may have one of their own
      own.scales = own.scales.map(usual);
      channels.querySelectorAll("[type=range], [type=number]").forEach((input) => input.value = usual());
    }
    changed();
  });
  if (model?.fast) fields.append(make("span"), make("label", { htmlFor: fast.id }, fast, " fast settings, in their place"));

  // copy and remove
  const copy = make("button", { type: "button", textContent: "Copy", ariaLabel: `Copy setting ${LETTERS[at]}`, disabled: settings.length >= LETTERS.length });
  copy.addEventListener("click", () => (settings.push(structuredClone(own)), layColumns(), draw()));
  const remove = make("button", { type: "button", className: "remove", textContent: "Remove", ariaLabel: `Remove setting ${LETTERS[at]}`, disabled: busy !== null || settings.length < 2 });
  remove.addEventListener("click", () => {
    settings.splice(at, 1);
    if (result) present({ ...result, settings: result.settings.filter((_, k) => k !== at).map((one, k) => ({ ...one, letter: LETTERS[k] })), asked: { ...result.asked, settings: result.asked.settings.filter((_, k) => k !== at) }, changes: at ? result.changes.filter((one) => one.letter !== LETTERS[at]) : [] }, $("about").textContent);
    else layColumns();
  });
  const rest = make("div", {}, fields, make("div", { className: "row" }, copy, remove));

  const refresh = () => {
    channels.querySelectorAll(".channel").forEach((row, k) => row.querySelectorAll("[type=range], [type=number]").forEach((input) => input.disabled = !own.channels[k]));
    for (const input of [rule, kind, first, second, sampler, steps, negative]) input.disabled = own.fast ?? false;
    const needs = DEFAULTS[kind.value]?.length ?? 0;
    numbers.hidden = needs === 0;
    second.hidden = needs < 2;
    numbers.previousElementSibling.hidden = needs === 0;
    curve.replaceChildren(curveOf(own), make("small", {}, make("span", { textContent: "noise" }), make("span", { textContent: "guidance over sampling" }), make("span", { textContent: "video" })));
  };
  refresh();
  return [channels, rest];
};
