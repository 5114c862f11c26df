// Keys, and the start: clips play at once, unless the reader's system asks for less motion.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const busy = at.tagName === "SELECT" || at.tagName === "INPUT" || at.classList.contains("scroll");
  if (ballot.turn !== null && ["1", "2", "0"].includes(event.key)) vote({ 1: "left", 2: "right", 0: "none" }[event.key]);
  else if (busy) return;
  else if (event.key === "ArrowRight") play(false), step(1);
  else if (event.key === "ArrowLeft") play(false), step(-1);
  else if (event.key === "Home") play(false), step(-frame);
  else if (event.key === " " && !["BUTTON", "A", "SUMMARY"].includes(at.tagName)) play(timer === null);
  else return;
  event.preventDefault();
});

choose();
layout();
play(!calm.matches);
