// The page: a text box, three models' answers, and the lens on two of them.

import { earlier, open } from "./engine.mjs";
import lens from "./lens.js";
import { lensData } from "./maps.mjs";

const at = (id) => document.getElementById(id);
const [box, status, answers, host] = ["text", "status", "answers", "lens"].map(at);
const LABELS = ["negative", "neutral", "positive"];
const LANGUAGES = { kin: "Kinyarwanda", swa: "Swahili", hau: "Hausa", ibo: "Igbo", yor: "Yoruba" };

function make(name, parent, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// ---- the answers

function rowOf(model) {
  const card = make("section", answers, "answer");
  const head = make("h2", card, "", model.title);
  const facts = `${(model.parameters / 1e6).toFixed(1)} million weights, ${(model.bytes / 1e6).toFixed(1)} MB`;
  const about = make("span", head, "faint");
  const verdict = make("p", card, "verdict");
  const bars = Object.fromEntries(LABELS.map((label) => {
    const line = make("div", card, `bar ${label}`);
    make("span", line, "", label);
    const track = make("span", line, "track");
    return [label, { fill: make("i", track), number: make("span", line, "number") }];
  }));
  return ({ probabilities, milliseconds }, when) => { // `when`: an earlier self, which has not learned to answer
    const best = LABELS.reduce((a, b) => (probabilities[b] > probabilities[a] ? b : a));
    const time = `in ${milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)} ms`;
    verdict.textContent = when ? "cannot answer yet" : `${best}, ${time}`;
    about.textContent = when ?? facts;
    card.dataset.label = best;
    LABELS.forEach((label) => {
      bars[label].fill.style.width = `${(100 * probabilities[label]).toFixed(1)}%`;
      bars[label].number.textContent = probabilities[label].toFixed(2);
    });
  };
}

// ---- the lens: lens.js as it is; another sentence is another header, and other steps are another lens

const state = { step: 0, teacher_head: -1, student_head: -1 };
const listeners = {};
let chosen = false; // layers, by the reader; until then the pair that differs most
let leave = () => {}, onStep = () => {};

const model = {
  get: (name) => state[name],
  set: (name, value) => {
    if (state[name] === value) return;
    state[name] = value;
    chosen ||= name.endsWith("_layer");
    listeners[`change:${name}`]();
    if (name === "step") onStep();
  },
  save_changes: () => {},
  on: (name, call) => { listeners[name] = call; },
  off: () => {},
};

function look({ header, maps, start }) {
  const same = state.header?.steps.length === header.steps.length;
  Object.assign(state, { header, maps }, chosen ? {} : start);
  if (same) return listeners["change:header"]();
  leave();
  host.replaceChildren();
  leave = lens.render({ model, el: host });
  return undefined;
}

// ---- a sentence

function examples(list) {
  const choose = at("examples");
  for (const [code, name] of Object.entries(LANGUAGES)) {
    const group = make("optgroup", choose);
    group.label = name;
    list.filter((one) => one.language === code).forEach((one) => {
      make("option", group, "", one.text).value = String(list.indexOf(one));
    });
  }
  const english = () => {
    const one = list.find(({ text }) => text === box.value);
    at("english").textContent = one?.english ? `\u201c${one.english}\u201d` : "";
    choose.value = one ? String(list.indexOf(one)) : "";
  };
  choose.addEventListener("change", () => {
    box.value = list[Number(choose.value)].text;
    box.dispatchEvent(new Event("input"));
  });
  box.addEventListener("input", english);
  choose.disabled = false;
  if (!box.value.trim()) box.value = list[0].text;
  english();
}

async function main() {
  status.textContent = "Loading the models; this happens once.";
  const { tokenizer, models, examples: list } = await open((path) => fetch(path));
  examples(list);
  const rows = models.map(rowOf);
  let before = [], course = []; // the student's earlier selves, and what all of them answer
  onStep = () => rows[1](course[state.step], before[state.step]?.title);
  let running = false, again = false;
  const run = async () => {
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      const begun = performance.now();
      const { ids, tokens } = tokenizer.read(box.value);
      const found = [];
      for (const model of models) found.push(await model.answer(ids));
      rows.forEach((show, i) => show(found[i]));
      course = [];
      for (const one of before) course.push(await one.answer(ids));
      course.push(found[1]);
      const steps = before.length ? [...before.map((one) => one.title), "trained"] : [];
      look(lensData(tokens, found[0].maps, course.map((one) => one.maps), steps));
      onStep();
      const spent = performance.now() - begun;
      document.body.dataset.first ??= String(Math.round(performance.now()));
      document.body.dataset.last = String(Math.round(spent));
      document.body.dataset.answered = box.value;
      status.textContent = ids.length >= tokenizer.longest
        ? `Only the first ${tokenizer.longest} pieces are read, as in training.`
        : `${ids.length} pieces; all three answers and the maps took ${Math.round(spent)} ms here, in this page.`;
    } while (again);
    running = false;
  };
  box.addEventListener("input", run);
  await run();

  const learn = at("learn");
  learn.hidden = !models[1].earlier.length;
  learn.addEventListener("click", async () => {
    learn.disabled = true;
    learn.textContent = "Loading\u2026";
    try {
      before = await earlier((path) => fetch(path), models[1]);
    } catch {
      learn.textContent = "Not loaded: try again";
      learn.disabled = false;
      return;
    }
    while (running) await new Promise((done) => { setTimeout(done, 20); });
    state.step = before.length; // the last; playing begins again from the first
    await run();
    learn.hidden = true;
    host.querySelector(".lens-play").click();
  });
}

main().catch((error) => { status.textContent = `This did not work: ${error.message}`; throw error; });
