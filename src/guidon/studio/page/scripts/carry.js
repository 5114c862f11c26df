// Carry on: the command line, the program and the manifest of a clip, downloads, and a study.

const carryOn = () => {
  $("carry").hidden = result.settings.length === 0;
  if ($("carry").hidden) return;
  const before = $("whose").value || "0";
  $("whose").replaceChildren(...result.settings.map((own, at) => new Option(`${own.letter}: ${own.words}`, at)));
  $("whose").value = Number(before) < result.settings.length ? before : "0";
  $("study-prompts-label").hidden = !model?.study;
  $("study-texts-label").hidden = Boolean(model?.study);
  if (!$("study-texts").value) $("study-texts").value = `${result.prompt}\n`;
  carryOne();
};
const carryOne = () => {
  const own = result.settings[Number($("whose").value)], at = Math.min(sample, own.clips.length - 1);
  $("command").textContent = own.commands[at];
  $("python").textContent = own.python[at];
  $("manifest").textContent = own.manifest[at];
  const link = (text, path) => make("a", { textContent: text, href: path, download: "" });
  $("downloads").replaceChildren("Download: ", ...["mp4", "gif", "webp", "png"].map((format) => link(format, `api/output/${own.clips[at]}/${format}`)), link("manifest", `api/output/${own.manifests[at]}`));
};
$("whose").addEventListener("change", carryOne);
for (const button of document.querySelectorAll("[data-copy]")) {
  const text = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($(button.dataset.copy).textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren($(button.dataset.copy));
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = text), 2000);
  });
}

const askedStudy = () => ({
  comparison: result.asked,
  prompts: model?.study ? $("study-prompts").valueAsNumber : $("study-texts").value.split("\n").map((text) => text.trim()).filter(Boolean),
  seeds: $("study-seeds").valueAsNumber,
  title: $("study-title").value,
});
$("study-yaml").addEventListener("click", async () => {
  complain("study-error");
  if (!$("study").reportValidity()) return;
  try {
    $("yaml").textContent = (await ask("api/yaml", askedStudy())).yaml;
    $("yaml").hidden = false;
  } catch (error) {
    complain("study-error", error);
  }
});
$("study").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("study-error");
  try {
    const job = await ask("api/study", askedStudy());
    $("yaml").textContent = job.result.yaml;
    $("yaml").hidden = false;
    listRun(job);
    const done = await follow(job, listRun);
    if (done.state === "done") openStudy(done);
  } catch (error) {
    complain("study-error", error);
  }
});
const openStudy = (job) => {
  $("report").hidden = false;
  $("report-link").href = $("report-frame").src = `api/output/${job.result.report}`;
  $("report-csv").href = `api/output/${job.result.csv}`;
};
