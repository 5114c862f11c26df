// Every clip is a strip of its frames in an image. Each gets a canvas in its place, and all canvases follow one clock.

const page = document.body.dataset;
const frames = Number(page.frames), height = Number(page.height);
const $ = (id) => document.getElementById(id);
const PER_PAGE = matchMedia("(max-width: 640px)").matches ? 4 : 12; // rows of the table of clips that are shown at once
const GAIN = 4; // of differences in the table
let frame = 0, timer = null, first = 0;

document.documentElement.classList.add("js");

const playerOf = (image) => {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", image.alt);
  image.after(canvas);
  return { image, canvas };
};
const examples = [...document.querySelectorAll(".examples img")].map(playerOf);
const rows = [...document.querySelectorAll("#grid tbody tr")];
const players = new Map(); // "prompt.sample/slug" -> {image, canvas}
const turnOf = (row) => `${row.dataset.prompt}.${row.dataset.sample}`;
const captionOf = (row) => row.querySelector(".caption").textContent;
for (const row of rows) {
  for (const cell of row.querySelectorAll("td")) {
    players.set(`${turnOf(row)}/${cell.dataset.slug}`, playerOf(cell.querySelector("img")));
  }
}

// A page may hold thousands of clips, so each is loaded when it is first wanted. What it was wanted for is then drawn.
const wanted = new Set();
let missing = 0; // clips that the last drawing wanted and that were not loaded
let waiting = false;
const soon = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => ((waiting = false), draw()));
};
const loaded = (image) => {
  if (image.complete && image.naturalWidth > 0) return true;
  if (!wanted.has(image)) {
    wanted.add(image);
    image.addEventListener("load", soon, { once: true });
    image.loading = "eager";
  }
  missing++;
  return false;
};
const draw = () => {
  const mode = $("mode").value, pinned = $("pin").value;
  missing = 0;
  for (const { image, canvas } of examples) show(image, canvas);
  for (const row of rows) {
    if (row.hidden) continue;
    for (const cell of row.querySelectorAll("td")) {
      if (cell.hidden) continue;
      const { image, canvas } = players.get(`${turnOf(row)}/${cell.dataset.slug}`);
      const other = players.get(`${turnOf(row)}/${pinned}`);
      if (mode === "slice") slice(image, Number(row.dataset.row), canvas);
      else if (mode === "difference" && other) difference(image, other.image, GAIN, canvas);
      else show(image, canvas);
      canvas.dataset.frame = frame;
    }
  }
  compare();
  drawBallot();
  $("scrub").value = frame;
  $("now").textContent = `${frame + 1} of ${frames}`;
  page.ready = String(missing === 0);
};

// Which rows and columns are shown, in which order, and how large.
const columns = [...document.querySelectorAll("#grid thead [data-slug]")].map((head) => head.dataset.slug);
const layout = () => {
  const only = $("only").value, pinned = $("pin").value;
  first = Math.max(0, Math.min(first, rows.length - 1));
  rows.forEach((row, number) => (row.hidden = number < first || number >= first + PER_PAGE));
  for (const cell of document.querySelectorAll("#grid [data-slug]")) {
    cell.hidden = only !== "" && cell.dataset.slug !== only && cell.dataset.slug !== pinned;
  }
  // The pinned setting stands first; the baseline does so only where another is compared with it.
  const leads = only || $("mode").value === "difference" || !$("pin").selectedOptions[0].defaultSelected;
  for (const row of document.querySelectorAll("#grid tr")) {
    const cells = columns.map((slug) => row.querySelector(`:scope > [data-slug="${CSS.escape(slug)}"]`));
    const at = leads && cells[columns.indexOf(pinned)];
    row.append(...(at ? [at, ...cells.filter((cell) => cell !== at)] : cells));
  }
  document.documentElement.style.setProperty("--clip", `${$("zoom").value}px`);
  const last = Math.min(first + PER_PAGE, rows.length);
  $("page").textContent = `${first + 1} to ${last} of ${rows.length}`;
  $("earlier").disabled = first === 0;
  $("later").disabled = last === rows.length;
  draw();
  hint();
};
const reveal = (prompt) => {
  const number = rows.findIndex((row) => row.id === `p-${prompt}`);
  if (number < 0) return;
  first = number - (number % PER_PAGE);
  $("which").value = turnOf(rows[number]);
  $("goto").value = prompt;
  choose();
  layout();
  rows[number].scrollIntoView({ block: rows[number].offsetHeight > innerHeight ? "start" : "center" });
};

$("play").addEventListener("click", () => play(timer === null));
$("back").addEventListener("click", () => (play(false), step(-1)));
$("forth").addEventListener("click", () => (play(false), step(1)));
$("scrub").addEventListener("input", () => (play(false), (frame = Number($("scrub").value)), draw()));
for (const id of ["zoom", "pin", "only"]) $(id).addEventListener("change", layout);
$("mode").addEventListener("change", layout);
$("goto").addEventListener("change", () => reveal($("goto").value));
$("earlier").addEventListener("click", () => ((first -= PER_PAGE), layout()));
$("later").addEventListener("click", () => ((first += PER_PAGE), layout()));
for (const link of document.querySelectorAll('a[href^="#p-"]')) {
  link.addEventListener("click", () => reveal(link.getAttribute("href").slice(3)));
}
// A point of a plot, or a setting's name, shows its clips beside the pinned ones.
for (const link of document.querySelectorAll("a[data-slug]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    $("only").value = link.dataset.slug;
    $("b").value = link.dataset.slug;
    layout();
    $("clips").scrollIntoView();
  });
}
