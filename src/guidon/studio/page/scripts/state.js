// What the page knows: the model, the settings as they are edited, and the result that is shown.

const page = document.body.dataset;
const $ = (id) => document.getElementById(id);
const LETTERS = "ABCD", GAIN = 4;
let frames = 1, height = 1, frame = 0, timer = null;
let model = null; // what the server says of the chosen model
let settings = []; // as they are edited
let result = null; // what is shown; each of its settings has the number that it has in the run
let example = null;
let sample = 0; // which clip of each setting
let busy = null; // the job that is waited for

const make = (tag, more = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), more);
  made.append(...inside);
  return made;
};
const SVG = "http://www.w3.org/2000/svg";
const draws = (tag, attributes) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// The answer of an address as plain data; what it refuses is an error with its one line.
const ask = async (path, body) => {
  const how = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...how });
  } catch {
    throw new Error("the studio does not answer: look at its terminal, then reload this page");
  }
  const text = await answer.text();
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    found = { error: text.trim() || `the studio answered ${answer.status}` };
  }
  if (!answer.ok) throw new Error(found.error);
  return found;
};
const complain = (place, error) => {
  $(place).textContent = error ? error.message : "";
  $(place).hidden = !error;
};
const number = (value, digits = 3) => (value === null || !Number.isFinite(value) ? "–" : Number(value.toPrecision(digits)).toString());
