// Tables: they sort by their columns, and show when they are wider than the screen.

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
      // What has no number stays last.
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

const hint = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    const rest = box.scrollWidth - box.clientWidth;
    box.parentElement.classList.toggle("wide", rest > 1);
    box.parentElement.classList.toggle("more", box.scrollLeft < rest - 1);
  }
};
for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", hint, { passive: true });
for (const box of document.querySelectorAll("details")) box.addEventListener("toggle", hint);
window.addEventListener("resize", hint);
