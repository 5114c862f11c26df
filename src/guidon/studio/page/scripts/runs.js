// Runs: asked for, waited for, cancelled, and the list of the session.

const sayWork = (job) => {
  const left = job.left && job.state === "working" ? `, about ${number(Math.max(1, Math.round(job.left)), 2)} s left` : "";
  const steps = job.state === "working" && job.total ? ` ${Math.floor((100 * job.done) / job.total)}%` : "";
  return `${job.message || job.state}${steps}${left}`;
};
const sleep = (ms) => new Promise((then) => setTimeout(then, ms));
const isOver = (job) => ["done", "failed", "cancelled"].includes(job.state);

// Ask for a job's state until it is over; ``told`` sees every state.
const follow = async (job, told) => {
  let wait = 150;
  for (;;) {
    told(job);
    if (isOver(job)) return job;
    await sleep(wait);
    wait = Math.min(600, wait * 1.2);
    job = await ask(`api/job/${job.id}`);
  }
};

const runs = new Map(); // id -> job, of this session
const lockRuns = () => {
  for (const line of document.querySelectorAll("#history li")) {
    const job = runs.get(line.dataset.id); // a comparison would replace the columns that a run in work fills
    line.querySelector("button").disabled = job.state !== "done" || (busy !== null && job.kind === "comparison");
  }
};
const listRun = (job) => {
  runs.set(job.id, job);
  $("no-runs").hidden = true;
  let line = document.querySelector(`#history li[data-id="${job.id}"]`);
  if (!line) {
    line = make("li");
    line.dataset.id = job.id;
    const open = make("button", { type: "button" });
    open.addEventListener("click", () => openRun(job.id));
    const stop = make("button", { type: "button", className: "stop", textContent: "Cancel" });
    stop.addEventListener("click", () => cancel(job.id));
    line.append(open, make("span", { className: "facts" }), stop);
    $("history").prepend(line);
  }
  line.querySelector("button").textContent = `${job.kind === "study" ? "Study: " : ""}${job.title}`;
  line.querySelector("span").textContent = isOver(job) ? job.message || (job.result?.answer ?? job.state) : sayWork(job);
  line.querySelector(".stop").hidden = isOver(job);
  lockRuns();
};
const openRun = async (id) => {
  try {
    const job = await ask(`api/job/${id}`);
    if (job.kind === "study") return openStudy(job), $("report").scrollIntoView();
    if (job.kind !== "comparison" || busy) return;
    await takeUp(job.result.asked);
    showRun(job);
    $("clips").focus();
  } catch (error) {
    complain("error", error);
  }
};
const showRun = (job) => {
  for (const open of document.querySelectorAll("#history li")) open.firstElementChild.classList.toggle("here", open.dataset.id === job.id);
  const found = job.result;
  present({ ...found, run: job.id, settings: found.settings.map((own, number) => ({ ...own, number })) }, `Seed ${found.seed}, ${model?.label ?? found.model}.`);
};
const cancel = async (id) => {
  try {
    listRun(await ask(`api/cancel/${id}`, {}));
  } catch (error) {
    complain("error", error);
  }
};

// The form takes up what a run was asked for.
const takeUp = async (asked) => {
  if (asked.model !== model.name) takeModel(await ask("api/model", { name: asked.model }));
  settings = structuredClone(asked.settings);
  $("prompt").value = asked.prompt;
  $("seed").value = asked.seed;
  $("seeds").value = asked.seeds;
  press();
};
const asked = () => ({
  model: model.name,
  prompt: $("prompt").value.trim(),
  seed: $("seed").valueAsNumber,
  seeds: Number($("seeds").value),
  settings: settings.map(tidy),
  force: $("force").checked,
});

const showWork = (job) => {
  busy = job && !isOver(job) ? job : null;
  $("working").hidden = busy === null;
  $("cancel").hidden = !busy?.id;
  $("generate").disabled = $("model").disabled = busy !== null;
  for (const remove of document.querySelectorAll(".remove")) remove.disabled = busy !== null || settings.length < 2; // columns are those of the run
  lockRuns();
  if (!busy) {
    for (const live of document.querySelectorAll(".live")) live.hidden = true;
    return saySettings();
  }
  $("status").textContent = sayWork(job);
  if (job.total) $("progress").value = job.done / job.total;
  else $("progress").removeAttribute("value");
  saySettings();
  if (job.previews && job.state === "working") {
    const live = document.querySelector(`.setting[data-number="${job.result.settings?.length ?? 0}"] .live`);
    if (live && live.dataset.number !== String(job.previews)) {
      live.dataset.number = job.previews;
      const next = new Image();
      next.onload = () => ((live.src = next.src), (live.hidden = busy === null));
      next.src = `api/preview/${job.id}?${job.previews}`;
    }
  }
};
const watch = async (job) => {
  let parts = 0;
  const told = (state) => {
    listRun(state);
    const done = state.result.settings?.length ?? 0;
    if (done > parts || (state.state === "done" && done)) {
      parts = done;
      showRun(state);
    }
    showWork(state);
  };
  const last = await follow(job, told);
  showWork(null);
  if (last.state === "failed") complain("error", new Error(last.message));
  $("notes").textContent = (last.result.notes ?? []).join(" ");
  $("notes").hidden = !$("notes").textContent;
};
const generate = async () => {
  if (busy) return;
  complain("error");
  showWork({ kind: "comparison", state: "waiting" }); // until the server answers
  try {
    const job = await ask("api/compare", asked());
    $("force-label").hidden = !$("force").checked;
    await watch(job);
  } catch (error) {
    complain("error", error);
    if (/sample it anyway/.test(error.message)) $("force-label").hidden = false;
    showWork(null);
  }
};
