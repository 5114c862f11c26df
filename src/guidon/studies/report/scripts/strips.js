"use strict";
// A clip is a strip of its frames in an image. The page that uses this says how many frames there are (`frames`), which one
// is shown (`frame`), how high they are (`height`), and whether an image is loaded (`loaded`).

const context = (canvas) => {
  const made = canvas.getContext("2d", { willReadFrequently: true });
  made.imageSmoothingEnabled = false;
  return made;
};
// A small clip has smaller frames than the study's.
const sizeOf = (image) => [image.naturalWidth / frames, image.naturalHeight];
const fit = (canvas, width, tall) => {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== tall) canvas.height = tall;
  return context(canvas);
};
const show = (image, canvas) => {
  if (!loaded(image)) return;
  const [w, h] = sizeOf(image);
  fit(canvas, w, h).drawImage(image, frame * w, 0, w, h, 0, 0, w, h);
};
// One row of pixels over time; ``row`` is counted in the study's frames.
const slice = (image, row, canvas) => {
  if (!loaded(image)) return;
  const [w, h] = sizeOf(image), drawn = fit(canvas, w, frames), at = Math.floor(((row + 0.5) / height) * h);
  for (let t = 0; t < frames; t++) drawn.drawImage(image, t * w, at, w, 1, 0, t, w, 1);
};
const still = document.createElement("canvas");
const pixels = (image) => {
  const [w, h] = sizeOf(image);
  show(image, still);
  return context(still).getImageData(0, 0, w, h);
};
const difference = (a, b, gain, canvas) => {
  if (![a, b].map(loaded).every(Boolean)) return;
  const one = pixels(a), two = pixels(b);
  for (let k = 0; k < one.data.length; k++) {
    if (k % 4 !== 3) one.data[k] = Math.min(255, gain * Math.abs(one.data[k] - two.data[k]));
  }
  fit(canvas, one.width, one.height).putImageData(one, 0, 0);
};

// The left part of one clip beside the right part of another; the edge is at ``percent`` of the width.
const wipe = (a, b, percent, canvas) => {
  if (![a, b].map(loaded).every(Boolean)) return;
  const [w, h] = sizeOf(a), edge = Math.round((w * percent) / 100);
  show(b, canvas);
  const drawn = context(canvas);
  if (edge > 0) drawn.drawImage(a, frame * w, 0, edge, h, 0, 0, edge, h);
  if (edge > 0 && edge < w) {
    drawn.fillStyle = "#ff00aa";
    drawn.fillRect(edge, 0, 1, h);
  }
};
