// The clock of all clips. The page that uses this draws them (`draw`), and says how many frames a second there are.

const step = (by) => {
  frame = (((frame + by) % frames) + frames) % frames;
  draw();
};
const play = (on) => {
  clearInterval(timer);
  timer = on && frames > 1 ? setInterval(() => step(1), 1000 / Number(page.fps)) : null;
  $("play").textContent = timer ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(timer !== null));
};
