// Two settings on one prompt: a wipe, their difference, and the same row of both over time.

const compare = () => {
  const a = players.get(`${$("which").value}/${$("a").value}`), b = players.get(`${$("which").value}/${$("b").value}`);
  if (!a || !b) return;
  for (const side of document.querySelectorAll("[data-side]")) side.textContent = $(side.dataset.side).selectedOptions[0].textContent;
  if (![a.image, b.image].map(loaded).every(Boolean)) return;
  wipe(a.image, b.image, Number($("wipe").value), $("wiped"));
  difference(a.image, b.image, Number($("gain").value), $("differ"));
  if (!$("row")) return;
  const row = Number($("row").value);
  $("rowname").textContent = `${row} of ${height}`;
  slice(a.image, row, $("slice-a"));
  slice(b.image, row, $("slice-b"));
};

// Another prompt: its slices start on the row where its object is.
const choose = () => {
  const row = rows.find((one) => turnOf(one) === $("which").value);
  if (!row) return;
  if ($("row")) $("row").value = row.dataset.row;
  $("inexact").hidden = row.dataset.exact === "1";
  compare();
};

$("which").addEventListener("input", choose);
for (const id of ["a", "b", "wipe", "gain", "row"]) $(id)?.addEventListener("input", compare);
