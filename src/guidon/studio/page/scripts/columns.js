// The clips: one column for each setting, all on one clock.

const images = new Map(); // id of an output -> its image
const loaded = (image) => Boolean(image && image.complete && image.naturalWidth > 0);
const imageOf = (id) => {
  if (!images.has(id)) {
    const image = new Image();
    image.addEventListener("load", () => draw());
    image.src = `api/output/${id}`;
    images.set(id, image);
  }
  return images.get(id);
};
const clipOf = (own) => (own ? imageOf(own.clips[Math.min(sample, own.clips.length - 1)]) : null);
const shownClips = () => (result ? result.settings.map(clipOf) : []);
const everyClip = () => [...shownClips(), ...(result?.truth ? [imageOf(result.truth.clip)] : [])];

const draw = () => {
  const mode = $("mode").value, row = Number($("row").value), clips = everyClip();
  document.querySelectorAll("#columns canvas").forEach((canvas) => {
    const image = canvas.dataset.truth ? clips.at(-1) : shownClips()[Number(canvas.dataset.number)];
    canvas.classList.toggle("empty", !image);
    if (!image) return void fit(canvas, 1, 1).clearRect(0, 0, 1, 1);
    if (mode === "slice") slice(image, row, canvas);
    else if (mode === "difference" && image !== clips[0]) difference(image, clips[0], GAIN, canvas);
    else show(image, canvas);
    canvas.dataset.frame = frame;
  });
  drawTwo();
  $("scrub").value = frame;
  $("now").textContent = `${frame + 1} of ${frames}`;
  page.ready = String(model !== null && clips.every(loaded));
};

const drawTwo = () => {
  const clips = everyClip(), a = clips[Number($("a").value)], b = clips[Number($("b").value)];
  if ($("two").hidden || ![a, b].every(loaded)) return;
  wipe(a, b, Number($("wipe").value), $("wiped"));
  difference(a, b, Number($("gain").value), $("differ"));
  slice(a, Number($("row").value), $("slice-a"));
  slice(b, Number($("row").value), $("slice-b"));
};

// Show another result, whole or in part.
const present = (found, about) => {
  const other = found !== result;
  result = found;
  if (!found) {
    for (const id of ["two", "inside", "carry"]) $(id).hidden = true;
    $("shown").textContent = "Clips";
    $("about").textContent = about;
    layColumns();
    return draw();
  }
  images.forEach((_, id) => everyIds().has(id) || images.delete(id));
  frames = found.frames ?? frames;
  height = found.height ?? height;
  page.fps = found.fps ?? page.fps;
  frame = Math.min(frame, frames - 1);
  document.documentElement.style.setProperty("--ratio", `${found.width ?? 1} / ${found.height ?? 1}`);
  $("shown").textContent = found.prompt;
  $("about").textContent = about;
  $("scrub").max = frames - 1;
  if (other) $("row").value = Math.floor(height / 2);
  $("row").max = height - 1;
  if (other) $("row").value = Math.floor(height / 2);
  sample = Math.min(sample, (found.seeds ?? 1) - 1);
  $("sample").replaceChildren(...Array.from({ length: found.seeds ?? 1 }, (_, k) => new Option(`${k + 1} of ${found.seeds}`, k, false, k === sample)));
  $("sample-label").hidden = (found.seeds ?? 1) < 2;
  const names = [...found.settings.map((own) => `${own.letter}: ${own.words}`), ...(found.truth ? ["what the prompt asks for"] : [])];
  const keep = other ? ["0", String(Math.min(1, names.length - 1))] : [$("a").value, $("b").value];
  ["a", "b"].forEach((id, k) => {
    $(id).replaceChildren(...names.map((name, at) => new Option(name, at)));
    $(id).value = Number(keep[k]) < names.length ? keep[k] : "0";
  });
  $("two").hidden = names.length < 2;
  layColumns();
  lookInside();
  carryOn();
  draw();
};
const everyIds = () => new Set([...result.settings.flatMap((own) => own.clips), result.truth?.clip]);

// Whether the clip that is shown was made with the setting as it is edited now.
const made = (at) => {
  const asked = result?.asked;
  if (!asked || !result.settings[at]) return false;
  return JSON.stringify(tidy(asked.settings[at])) === JSON.stringify(tidy(settings[at])) && asked.prompt === $("prompt").value.trim()
    && asked.seed === Number($("seed").value) && asked.model === model?.name;
};
const tidy = (own) => {
  const { channels, scales, guidance, timing, sampler, steps, negative_prompt, fast } = own;
  return { channels, scales, guidance: guidance ?? "cfg", timing: timing ?? null, sampler: sampler ?? null, steps: steps ?? null, negative_prompt: negative_prompt || null, fast: fast ?? false };
};

// The line under a clip.
const sayOf = (at) => {
  const own = result?.settings[at];
  if (busy && !busy.over && at >= (busy.result?.settings?.length ?? 0) && busy.kind === "comparison") return at > (busy.result?.settings?.length ?? 0) || busy.state !== "working" ? "waits" : busy.previews && !busy.decoded ? "in work; drawn from its latents: shapes are right, colours are not" : "in work";
  if (!own) return "not made yet: press Generate";
  if (!made(at)) return "changed since this clip: press Generate";
  const values = own.values?.joint, took = own.seconds ? `${number(own.seconds, 2)} s` : "";
  const joint = values ? (values.filter((one) => one === 1).length + ` of ${values.length} as asked`) : "";
  return [joint, `${own.steps} steps`, took, own.lossy?.length ? `lossy: ${own.lossy.join(", ")}` : ""].filter(Boolean).join(" · ");
};
const saySettings = () => {
  settings.forEach((_, at) => {
    const column = document.querySelector(`.setting[data-number="${at}"]`);
    if (!column) return;
    column.classList.toggle("stale", Boolean(result?.settings[at]) && !made(at));
    column.querySelector(".said").textContent = sayOf(at);
    column.querySelector("header p").textContent = result?.settings[at] && made(at) ? result.settings[at].words : inWords(settings[at]);
  });
};

const layColumns = () => {
  const inside = document.activeElement?.id;
  const opened = [...document.querySelectorAll(".setting:not(.truth)")].map((own) => [...own.querySelectorAll("details")].map((one) => one.open));
  const columns = settings.map((own, at) => columnOf(own, at, opened[at] ?? [roomy.matches, false]));
  if (result?.truth) {
    const canvas = make("canvas", { role: "img", ariaLabel: "What the prompt asks for, drawn exactly" });
    canvas.dataset.truth = "1";
    columns.push(make("article", { className: "setting truth" },
      make("header", {}, make("p", {}, make("b", { textContent: "The truth" }), " what the prompt asks for, drawn exactly")),
      canvas, make("p", { className: "said", textContent: "what it leaves open is taken from A" })));
  }
  $("columns").replaceChildren(...columns);
  $("add").hidden = settings.length >= LETTERS.length;
  saySettings();
  if (inside) $(inside)?.focus();
};
const roomy = matchMedia("(min-width: 700px)");
const columnOf = (own, at, [channelsOpen, restOpen]) => {
  const [channels, rest] = formOf(own, at);
  const canvas = make("canvas", { role: "img", ariaLabel: `Clip of setting ${LETTERS[at]}` });
  canvas.dataset.number = at;
  const live = make("img", { className: "live", hidden: true, alt: `Preview of setting ${LETTERS[at]} while it is made` });
  const column = make("article", { className: "setting", ariaLabel: `Setting ${LETTERS[at]}` },
    make("header", {}, make("b", { className: "letter", textContent: LETTERS[at] }), make("p")),
    canvas, live, make("p", { className: "said" }),
    make("details", { open: channelsOpen }, make("summary", { textContent: `Channels of ${LETTERS[at]}` }), channels),
    make("details", { open: restOpen }, make("summary", { textContent: `Rule, timing, sampler of ${LETTERS[at]}` }), rest));
  column.dataset.number = at;
  return column;
};
