// Keys and buttons, and the start: the example, or the last run of this session.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

$("play").addEventListener("click", () => play(timer === null));
$("back").addEventListener("click", () => (play(false), step(-1)));
$("forth").addEventListener("click", () => (play(false), step(1)));
$("scrub").addEventListener("input", () => (play(false), (frame = Number($("scrub").value)), draw()));
for (const id of ["a", "b", "wipe", "gain", "row"]) $(id).addEventListener("input", draw);
$("mode").addEventListener("change", () => (($("row-label").hidden = $("mode").value !== "slice"), draw()));
$("sample").addEventListener("change", () => ((sample = Number($("sample").value)), carryOne(), draw()));
$("add").addEventListener("click", () => (settings.push(structuredClone(settings.at(-1))), layColumns(), draw()));
$("ask").addEventListener("submit", (event) => (event.preventDefault(), generate()));
$("cancel").addEventListener("click", () => busy && cancel(busy.id));
$("dice").addEventListener("click", () => (($("seed").value = Math.floor(Math.random() * 1e6)), saySettings()));
for (const id of ["prompt", "seed"]) $(id).addEventListener("input", () => (press(), saySettings()));
$("seeds").replaceChildren(...Array.from({ length: 8 }, (_, k) => new Option(k + 1, k + 1)));

document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return event.preventDefault(), generate();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (["SELECT", "INPUT", "TEXTAREA", "PRE"].includes(at.tagName) || at.classList.contains("scroll")) return;
  if (event.key === "ArrowRight") play(false), step(1);
  else if (event.key === "ArrowLeft") play(false), step(-1);
  else if (event.key === "Home") play(false), step(-frame);
  else if (event.key === " " && !["BUTTON", "A", "SUMMARY"].includes(at.tagName)) play(timer === null);
  else return;
  event.preventDefault();
});

// The words of the model as chips: a press puts a word in the place of another of its kind, or at the end.
const press = () => {
  const words = $("prompt").value.toLowerCase().split(/[^a-z]+/);
  for (const chip of document.querySelectorAll("#words .chip")) chip.setAttribute("aria-pressed", String(chip.textContent.split(" ").every((word) => words.includes(word))));
};
const say = (word, kind) => {
  const others = model.words[kind], prompt = $("prompt").value;
  const present = others.find((other) => new RegExp(`\\b${other}\\b`, "i").test(prompt));
  $("prompt").value = present ? prompt.replace(new RegExp(`\\b${present}\\b`, "i"), word) : `${prompt.trim()} ${word}`.trim();
  press();
  saySettings();
};
const takeModel = (found) => {
  model = found;
  if (![...$("model").options].some((one) => one.value === found.name)) $("model").append(new Option(found.label, found.name));
  $("model").value = found.name;
  $("prompt").placeholder = found.classes ? "a class, as its number or its name" : "what to show";
  const rules = $("rules") ?? document.body.appendChild(make("datalist", { id: "rules" }));
  rules.replaceChildren(...found.rules.map((rule) => new Option(rule)));
  $("proposals").replaceChildren(...found.prompts.slice(0, 4).map((text) => {
    const chip = make("button", { type: "button", className: "chip", textContent: text });
    chip.addEventListener("click", () => (($("prompt").value = text), press(), saySettings()));
    return chip;
  }));
  $("vocabulary").hidden = Object.keys(found.words).length === 0;
  $("words").replaceChildren(...Object.entries(found.words).map(([kind, words]) => make("div", { className: "kind", role: "group", ariaLabel: kind }, make("span", { textContent: kind }), ...words.map((word) => {
    const chip = make("button", { type: "button", className: "chip", textContent: word });
    chip.addEventListener("click", () => say(word, kind));
    return chip;
  }))));
  press();
};
const fresh = () => {
  const own = { channels: [...model.guided], scales: model.guided.map(() => model.scale || 1), guidance: "cfg" };
  return [own, { ...structuredClone(own), channels: own.channels.map(() => true) }];
};
$("model").addEventListener("change", async () => {
  complain("error");
  try {
    takeModel(await ask("api/model", { name: $("model").value }));
    settings = fresh();
    $("prompt").value = model.prompts[0] ?? "";
    press();
    present(null, "Nothing was made with this model yet.");
  } catch (error) {
    complain("error", error);
    $("model").value = model.name;
  }
});
let listed = false;
const listModels = async () => {
  if (listed) return;
  listed = true;
  try {
    const all = await ask("api/models");
    $("model").replaceChildren(...all.map((one) => Object.assign(new Option(one.label, one.name, false, one.name === model.name), { disabled: !one.ready })));
    $("models-all").replaceChildren(...all.map((one) => make("li", {}, make("b", { textContent: one.label }), ` ${one.summary}`, ...(one.ready ? [] : [make("span", { className: "missing", textContent: `Not ready: ${one.missing}` })]))));
  } catch (error) {
    listed = false;
    complain("error", error);
  }
};
$("model").addEventListener("focus", listModels);
$("model").addEventListener("pointerdown", listModels);
$("model-list").addEventListener("toggle", listModels);

const start = async () => {
  try {
    const hello = await ask("api/hello");
    example = hello.example;
    takeModel(hello.model);
    const usable = example && example.model === model.name;
    if (usable) await takeUp(example.asked);
    else (settings = fresh()), ($("prompt").value = model.prompts[0] ?? "");
    hello.runs.filter((job) => job.kind !== "spectrum" && job.kind !== "warming").forEach(listRun);
    const done = hello.runs.filter((job) => job.kind === "comparison" && job.state === "done").at(-1);
    const working = hello.runs.find((job) => job.kind === "comparison" && !isOver(job));
    if (done) await openRun(done.id);
    else if (usable) present(example, "An example that comes with Guidon: no guidance, the model's own, and twice its scale on all channels at every step.");
    else present(null, "Nothing was made yet: press Generate.");
    play(!calm.matches && frames > 1);
    for (const job of hello.runs.filter((one) => one.kind === "study" && !isOver(one))) follow(await ask(`api/job/${job.id}`), listRun);
    if (working) {
      const state = await ask(`api/job/${working.id}`);
      await takeUp(state.result.asked);
      layColumns();
      await watch(state);
    }
  } catch (error) {
    complain("error", error);
  }
};
start();
