"use strict";
(() => {
  const page = document.body.dataset;
  const frames = Number(page.frames), width = Number(page.width), height = Number(page.height);
  const $ = (id) => document.getElementById(id);
  const cells = new Map(); // "prompt.sample/slug" -> {image, canvas, cell}
  const PER_PAGE = 12;
  let frame = 0, timer = null, first = 0;

  document.documentElement.classList.add("js");

  // One canvas a clip, in place of its strip.
  const rows = [...document.querySelectorAll("#grid tbody tr")];
  const counts = new Map();
  for (const row of rows) {
    const prompt = row.dataset.prompt, sample = counts.get(prompt) ?? 0;
    counts.set(prompt, sample + 1);
    row.dataset.sample = `${prompt}.${sample}`;
    for (const cell of row.querySelectorAll("td")) {
      const image = cell.querySelector("img"), canvas = document.createElement("canvas");
      canvas.width = width;
      canvas.height = height;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", image.alt);
      canvas.dataset.slug = cell.dataset.slug;
      image.after(canvas);
      cells.set(`${row.dataset.sample}/${cell.dataset.slug}`, { image, canvas, cell });
    }
  }

  const context = (canvas) => {
    const made = canvas.getContext("2d", { willReadFrequently: true });
    made.imageSmoothingEnabled = false;
    return made;
  };
  const still = document.createElement("canvas");
  still.width = width;
  still.height = height;

  // The pixels of a frame, or of one row over all frames.
  const pixels = (image, at) => {
    const drawn = context(still);
    drawn.drawImage(image, at * width, 0, width, height, 0, 0, width, height);
    return drawn.getImageData(0, 0, width, height);
  };
  const slice = (image, row, canvas) => {
    canvas.width = width;
    canvas.height = frames;
    const drawn = context(canvas);
    for (let t = 0; t < frames; t++) drawn.drawImage(image, t * width, row, width, 1, 0, t, width, 1);
  };
  const show = (image, canvas) => {
    if (canvas.height !== height) canvas.height = height;
    context(canvas).drawImage(image, frame * width, 0, width, height, 0, 0, width, height);
  };
  const difference = (a, b, gain, canvas) => {
    if (canvas.height !== height) canvas.height = height;
    const one = pixels(a, frame), two = pixels(b, frame);
    for (let k = 0; k < one.data.length; k++) {
      if (k % 4 !== 3) one.data[k] = Math.min(255, gain * Math.abs(one.data[k] - two.data[k]));
    }
    context(canvas).putImageData(one, 0, 0);
  };

  const draw = () => {
    const mode = $("mode").value, pinned = $("pin").value;
    for (const row of rows) {
      if (row.hidden) continue;
      for (const cell of row.querySelectorAll("td")) {
        if (cell.hidden) continue;
        const { image, canvas } = cells.get(`${row.dataset.sample}/${cell.dataset.slug}`);
        const other = cells.get(`${row.dataset.sample}/${pinned}`);
        if (mode === "slice") slice(image, Math.floor(height / 2), canvas);
        else if (mode === "difference" && other) difference(image, other.image, 4, canvas);
        else show(image, canvas);
        canvas.dataset.frame = frame;
      }
    }
    compare();
    if (ballot.pair) {
      for (const side of ["left", "right"]) show(ballot.pair[side].image, $(side));
    }
    $("scrub").value = frame;
    $("now").textContent = frame;
  };

  const compare = () => {
    const a = cells.get(`${$("which").value}/${$("a").value}`), b = cells.get(`${$("which").value}/${$("b").value}`);
    if (!a || !b) return;
    const canvas = $("wiped"), drawn = context(canvas), edge = Math.round((width * $("wipe").value) / 100);
    show(b.image, canvas);
    if (edge > 0) drawn.drawImage(a.image, frame * width, 0, edge, height, 0, 0, edge, height);
    if (edge > 0 && edge < width) {
      drawn.fillStyle = "#ff00aa";
      drawn.fillRect(edge, 0, 1, height);
    }
    difference(a.image, b.image, Number($("gain").value), $("differ"));
    slice(a.image, Number($("row").value), $("slice-a"));
    slice(b.image, Number($("row").value), $("slice-b"));
  };

  // One clock for everything.
  const step = (by) => {
    frame = (((frame + by) % frames) + frames) % frames;
    draw();
  };
  const play = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(() => step(1), 1000 / Number(page.fps)) : null;
    $("play").textContent = on ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(on));
  };

  const layout = () => {
    const only = $("only").value, pinned = $("pin").value, zoom = Number($("zoom").value);
    first = Math.max(0, Math.min(first, rows.length - 1));
    rows.forEach((row, number) => (row.hidden = number < first || number >= first + PER_PAGE));
    for (const cell of document.querySelectorAll("#grid [data-slug]")) {
      if (cell.tagName === "CANVAS") continue;
      cell.hidden = only !== "" && cell.dataset.slug !== only && cell.dataset.slug !== pinned;
    }
    // the pinned setting stands first
    for (const row of document.querySelectorAll("#grid tr")) {
      const at = row.querySelector(`:scope > [data-slug="${CSS.escape(pinned)}"]`);
      if (at) row.firstElementChild.after(at);
    }
    for (const { canvas } of cells.values()) {
      canvas.style.width = `${width * zoom}px`;
      canvas.style.height = `${height * zoom}px`;
    }
    const last = Math.min(first + PER_PAGE, rows.length);
    $("page").textContent = `${first + 1} to ${last} of ${rows.length}`;
    $("earlier").disabled = first === 0;
    $("later").disabled = last === rows.length;
    draw();
  };
  const reveal = (prompt) => {
    const number = rows.findIndex((row) => row.id === `p-${prompt}`);
    if (number < 0) return;
    first = number - (number % PER_PAGE);
    $("which").value = rows[number].dataset.sample;
    layout();
    rows[number].scrollIntoView({ block: "center" });
  };

  $("play").addEventListener("click", () => play(timer === null));
  $("back").addEventListener("click", () => (play(false), step(-1)));
  $("forth").addEventListener("click", () => (play(false), step(1)));
  $("scrub").addEventListener("input", () => (play(false), (frame = Number($("scrub").value)), draw()));
  for (const id of ["zoom", "pin", "only"]) $(id).addEventListener("change", layout);
  $("mode").addEventListener("change", draw);
  for (const id of ["which", "a", "b", "wipe", "gain", "row"]) $(id).addEventListener("input", compare);
  $("earlier").addEventListener("click", () => ((first -= PER_PAGE), layout()));
  $("later").addEventListener("click", () => ((first += PER_PAGE), layout()));
  for (const link of document.querySelectorAll('a[href^="#p-"]')) {
    link.addEventListener("click", () => reveal(link.getAttribute("href").slice(3)));
  }

  // A point of a plot, or a setting's name, opens its videos beside the pinned one.
  for (const link of document.querySelectorAll("a[data-setting]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const option = [...$("only").options].find((o) => o.textContent === link.dataset.setting);
      $("only").value = option ? option.value : "";
      if (option) $("b").value = option.value;
      layout();
      $("clips").scrollIntoView();
    });
  }

  document.addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = at.tagName === "SELECT" || at.tagName === "INPUT";
    if (ballot.pair && ["1", "2", "0"].includes(event.key)) vote({ 1: "left", 2: "right", 0: "none" }[event.key]);
    else if (typing) return;
    else if (event.key === "ArrowRight") play(false), step(1);
    else if (event.key === "ArrowLeft") play(false), step(-1);
    else if (event.key === "Home") play(false), step(-frame);
    else if (event.key === " " && !["BUTTON", "A", "SUMMARY"].includes(at.tagName)) play(timer === null);
    else return;
    event.preventDefault();
  });

  // Tables that sort by their columns; what has no number stays last.
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const text = head.dataset.kind === "text";
        const order = [...table.tBodies[0].rows].sort((a, b) => {
          if (text) return (up ? 1 : -1) * key(a).localeCompare(key(b));
          const [x, y] = [Number(key(a)), Number(key(b))];
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return up ? x - y : y - x;
        });
        table.tBodies[0].append(...order);
      });
    });
  }

  // The blind vote.
  const ballot = { queue: [], votes: [], pair: null, url: null };
  const shuffled = (list) => {
    for (let k = list.length - 1; k > 0; k--) {
      const other = Math.floor(Math.random() * (k + 1));
      [list[k], list[other]] = [list[other], list[k]];
    }
    return list;
  };
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const next = () => {
    const turn = ballot.queue.pop();
    ballot.pair = null;
    $("ballot").hidden = !turn;
    $("tally").textContent = `${ballot.votes.length} votes${turn ? `, ${ballot.queue.length + 1} to go` : "; thank you"}`;
    if (turn) {
      const sides = shuffled(["a", "b"]).map((side) => ballot[side]);
      ballot.pair = { turn, slugs: sides };
      ["left", "right"].forEach((side, k) => (ballot.pair[side] = cells.get(`${turn}/${sides[k]}`)));
      const row = rows.find((r) => r.dataset.sample === turn);
      $("asked").textContent = row.cells[0].lastChild.textContent.trim();
      if (timer === null) play(true);
    }
    draw();
  };
  const vote = (side) => {
    const { turn, slugs } = ballot.pair, [prompt, sample] = turn.split(".");
    const row = rows.find((r) => r.dataset.sample === turn);
    const winner = side === "none" ? "" : slugs[side === "left" ? 0 : 1];
    ballot.votes.push([prompt, sample, row.cells[0].lastChild.textContent.trim(), ...slugs, side, winner]);
    const lines = [["prompt", "sample", "caption", "left", "right", "vote", "winner"], ...ballot.votes];
    const file = new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
    if (ballot.url) URL.revokeObjectURL(ballot.url);
    ballot.url = URL.createObjectURL(file);
    $("export").href = ballot.url;
    $("export").hidden = false;
    next();
  };
  $("begin").addEventListener("click", () => {
    ballot.a = $("a").value;
    ballot.b = $("b").value;
    ballot.votes = [];
    ballot.queue = ballot.a === ballot.b ? [] : shuffled(rows.map((row) => row.dataset.sample));
    next();
  });
  for (const button of document.querySelectorAll("[data-vote]")) {
    button.addEventListener("click", () => vote(button.dataset.vote));
  }

  Promise.all([...cells.values()].map(({ image }) => image.decode())).then(() => {
    layout();
    document.body.dataset.ready = "true";
  });
})();
