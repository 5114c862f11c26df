// The blind vote: two settings without names. At its end the tally and the names.

const ballot = { queue: [], votes: [], turn: null, sides: null, url: null, a: "", b: "" };
const shuffled = (list) => {
  for (let k = list.length - 1; k > 0; k--) {
    const other = Math.floor(Math.random() * (k + 1));
    [list[k], list[other]] = [list[other], list[k]];
  }
  return list;
};
const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
const nameOf = (slug) => [...$("a").options].find((option) => option.value === slug).textContent;

const drawBallot = () => {
  if (ballot.turn === null) return;
  ballot.sides.forEach((slug, k) => show(players.get(`${ballot.turn}/${slug}`).image, $(["left", "right"][k])));
};
const next = () => {
  if (ballot.queue.length === 0) return finish();
  ballot.turn = ballot.queue.pop();
  ballot.sides = shuffled([ballot.a, ballot.b]);
  $("asked").textContent = captionOf(rows.find((row) => turnOf(row) === ballot.turn));
  $("tally").textContent = `Vote ${ballot.votes.length + 1} of ${ballot.votes.length + ballot.queue.length + 1}`;
  draw();
};
const vote = (side) => {
  const [prompt, sample] = ballot.turn.split("."), winner = side === "none" ? "" : ballot.sides[side === "left" ? 0 : 1];
  ballot.votes.push([prompt, sample, $("asked").textContent, ...ballot.sides, side, winner]);
  next();
};

// The probability that a fair coin splits ``a`` to ``b`` or more unevenly.
const chance = (a, b) => {
  const n = a + b;
  let log = -n * Math.LN2, tail = 0; // of the probability of k, which would underflow for many votes
  for (let k = 0; k <= Math.min(a, b); k++) {
    tail += Math.exp(log);
    log += Math.log((n - k) / (k + 1));
  }
  return Math.min(1, 2 * tail);
};
const finish = () => {
  ballot.turn = null;
  document.body.classList.remove("voting");
  $("ballot").hidden = true;
  $("begin").hidden = false;
  $("begin").textContent = "Vote again";
  const count = (slug) => ballot.votes.filter((one) => one[6] === slug).length;
  const a = count(ballot.a), b = count(ballot.b), p = chance(a, b);
  const coin = a + b === 0 ? "" : ` A coin would split ${a} to ${b}, or more unevenly, with probability ${p.toFixed(2)}${p < 0.05 ? ": more than chance" : ": that may be chance"}.`;
  $("tally").textContent = ballot.votes.length === 0
    ? "No votes."
    : `${ballot.votes.length} votes: ${a} for ${nameOf(ballot.a)}, ${b} for ${nameOf(ballot.b)}, ${count("")} without a difference.${coin}`;
  $("votes").replaceChildren(
    ...ballot.votes.map(([, , caption, left, right, , winner]) => {
      const row = document.createElement("tr");
      for (const text of [caption, nameOf(left), nameOf(right), winner ? nameOf(winner) : "no difference"]) {
        row.append(Object.assign(document.createElement("td"), { textContent: text }));
      }
      return row;
    }),
  );
  $("revealed").hidden = $("export").hidden = ballot.votes.length === 0;
  const lines = [["prompt", "sample", "caption", "left", "right", "vote", "winner"], ...ballot.votes];
  const file = new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
  if (ballot.url) URL.revokeObjectURL(ballot.url);
  ballot.url = URL.createObjectURL(file);
  $("export").href = ballot.url;
  hint();
  $("vote").scrollIntoView();
};

$("begin").addEventListener("click", () => {
  ballot.a = $("a").value;
  ballot.b = $("b").value;
  if (ballot.a === ballot.b) {
    $("tally").textContent = "Left and right are the same setting: choose two above.";
    return;
  }
  ballot.votes = [];
  ballot.queue = shuffled(rows.map(turnOf));
  document.body.classList.add("voting"); // hides the sections that would tell which is which
  $("ballot").hidden = false;
  $("begin").hidden = $("revealed").hidden = $("export").hidden = true;
  if (timer === null && !calm.matches) play(true);
  next();
});
$("stop").addEventListener("click", finish);
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => vote(button.dataset.vote));
}
