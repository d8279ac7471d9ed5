// The attention lens in the browser: a plain ES module, used as it is by the notebook widget
// and by the exported page. `model` gives the data and the selection:
//   header  object, maps  bytes (see payload in data.py); changed together, for another text
//   teacher_layer, student_layer, step, teacher_head, student_head  whole numbers
// and, where they are known,
//   occlusion  {teacher: [N], student: [K][N]}, or {}
//   live  whether another text can be read; tried  the texts read so far. The model then has
//   send({id, text}) and send({id, hide: true}), answered as LensWidget says (widget.py).
// Text reaches the page by textContent and canvas fillText alone.

const LIGHT = {
  map: "#fcfdbf #fed799 #feb078 #fc8961 #f1605d #d8456c #b73779 #932b80 #721f81 #51127c #2c115f #100b2d #000004",
  signed: "#7f3b08 #aa5306 #d0730f #ef9e3c #fdc57f #fde4c0 #f6f6f7 #dddfed #bfbbda #988dbe #70589f #4d207d #2d004b",
  ink: "#1d1d1f", faint: "#6b6b70", line: "#8a8a90", paper: "#ffffff", mark: "#0072b2",
  teacher: "#0072b2", student: "#c06f00",
};
const DARK = {
  map: "#000004 #100b2d #2c115f #51127c #721f81 #932b80 #b73779 #d8456c #f1605d #fc8961 #feb078 #fed799 #fcfdbf",
  signed: "#ffd9a0 #f9b04f #e08a1c #b0660d #784309 #432606 #17171a #25203a #443a6b #6a5ca0 #9284c6 #bbb0e2 #e4defa",
  ink: "#ececee", faint: "#a2a2a8", line: "#75757d", paper: "#17171a", mark: "#56b4e9",
  teacher: "#56b4e9", student: "#e69f00",
};
const GRID = "#00224e #003170 #2a3f6d #434e6c #575d6d #6a6c71 #7d7c78 #918b78 #a59c74 #bcae6c #d2c060 #e9d34e #fee838";
const HELP = "Arrow keys move up and down through the tokens that look, left and right through those looked at; in the grid of layers they choose the layers. Escape lets go.";
const TYPED = 60; // ms without a key before a text is sent
const PACE = 900; // ms for each training step
const PATIENCE = 4000; // ms without an answer before the box says so
const AXIS = 16; // height of an axis title
const SCALE = "0: alike, 0.69: nothing in common"; // nats

// ------------------------------------------------------------------ numbers and colors

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** 256 colors along a list of anchors. */
function ramp(anchors) {
  const stops = anchors.split(" ").map(rgb);
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const k = Math.min(stops.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = stops[k][c] + (at - k) * (stops[k + 1][c] - stops[k][c]);
    }
  }
  return table;
}

function css(table, i) {
  return `rgb(${table[3 * i]}, ${table[3 * i + 1]}, ${table[3 * i + 2]})`;
}

/** One map of a block as numbers: p = scale (code / 255)^2. */
function readMap(bytes, block, index) {
  const n = block.shape[block.shape.length - 1];
  let flat = 0;
  index.forEach((i, axis) => { flat = flat * block.shape[axis] + i; });
  const scale = block.scale[flat] / (255 * 255);
  const start = block.offset + flat * n * n;
  const values = new Float32Array(n * n);
  for (let i = 0; i < n * n; i++) values[i] = scale * bytes[start + i] * bytes[start + i];
  return values;
}

/** What was read of one text: the header's parts by name, and its maps. */
function readData(model) {
  const header = model.get("header"), raw = model.get("maps");
  const bytes = raw instanceof Uint8Array ? raw : new Uint8Array(raw.buffer ?? raw, raw.byteOffset ?? 0, raw.byteLength);
  const { tokens, mask, blocks } = header;
  const valid = mask.flatMap((m, i) => (m ? [i] : []));
  const data = { ...header, n: tokens.length, valid, bytes, T: blocks.teacher.shape[0], S: blocks.student.shape[1] };
  data.names = tokens.map((token) => token.replace(/^▁/u, "_")); // the block is too heavy on an axis
  data.teacherMap = (t, head) => head >= 0 && blocks.teacherHeads
    ? readMap(bytes, blocks.teacherHeads, [t, head]) : readMap(bytes, blocks.teacher, [t]);
  data.studentMap = (k, s, head) => head >= 0 && blocks.studentHeads
    ? readMap(bytes, blocks.studentHeads, [k, s, head]) : readMap(bytes, blocks.student, [k, s]);
  return data;
}

/** The mean row of a map: how much each token is looked at. */
function meanRow({ n, valid }, values) {
  return Array.from({ length: n }, (_, k) => valid.reduce((sum, q) => sum + values[q * n + k], 0) / (valid.length || 1));
}

/** Distances and entropies of all layers: of head means, as the header has them, or of the heads chosen. */
function measure(data, { k, th, sh }) {
  if (th < 0 && sh < 0) {
    return { js: data.js[k], cka: data.cka[k], teacherEntropy: data.teacherEntropy, studentEntropy: data.studentEntropy[k] };
  }
  const { n, valid } = data, m = valid.length;
  const entr = (x) => (x > 0 ? -x * Math.log(x) : 0);
  const prepare = (values) => {
    const p = new Float64Array(m * m), h = new Float64Array(m);
    for (let q = 0; q < m; q++) {
      let total = 0;
      for (let j = 0; j < m; j++) total += values[valid[q] * n + valid[j]];
      for (let j = 0; j < m; j++) h[q] += entr(p[q * m + j] = values[valid[q] * n + valid[j]] / (total || 1));
    }
    const centered = p.slice(), gram = new Float64Array(m * m);
    for (let j = 0; j < m; j++) {
      let mean = 0;
      for (let q = 0; q < m; q++) mean += p[q * m + j] / m;
      for (let q = 0; q < m; q++) centered[q * m + j] -= mean;
    }
    for (let a = 0; a < m; a++) for (let b = 0; b < m; b++) for (let j = 0; j < m; j++) gram[a * m + b] += centered[a * m + j] * centered[b * m + j];
    return { p, h, gram, entropy: h.reduce((a, b) => a + b, 0) / (m || 1) };
  };
  const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; };
  const js = (a, b) => {
    let sum = 0;
    for (let i = 0; i < m * m; i++) sum += entr((a.p[i] + b.p[i]) / 2);
    for (let q = 0; q < m; q++) sum -= (a.h[q] + b.h[q]) / 2;
    return Math.max(0, sum / (m || 1));
  };
  const cka = (a, b) => dot(a.gram, b.gram) / (Math.sqrt(dot(a.gram, a.gram) * dot(b.gram, b.gram)) || 1);
  const teacher = Array.from({ length: data.T }, (_, t) => prepare(data.teacherMap(t, th)));
  const student = Array.from({ length: data.S }, (_, s) => prepare(data.studentMap(k, s, sh)));
  const table = (of) => student.map((b) => teacher.map((a) => of(a, b)));
  return { js: table(js), cka: table(cka), teacherEntropy: teacher.map((a) => a.entropy), studentEntropy: student.map((b) => b.entropy) };
}

function largest(values) {
  let top = 0;
  for (const v of values) top = Math.max(top, Math.abs(v));
  return top;
}

function isDark(el) {
  const body = document.body;
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return true;
  if (document.documentElement.getAttribute("theme") === "dark") return true; // Colab
  for (let node = el; node; node = node.parentElement) {
    const parts = getComputedStyle(node).backgroundColor.match(/[\d.]+/g);
    if (parts && (parts.length < 4 || Number(parts[3]) > 0.5)) {
      return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] < 110;
    }
  }
  return false;
}

// ------------------------------------------------------------------ small pieces of page

function make(name, parent, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function choices(parent, label, options, onChange) {
  const wrap = make("label", parent, "lens-choice");
  make("span", wrap, "", label);
  const select = make("select", wrap);
  options.forEach(([value, text]) => {
    const option = make("option", select, "", text);
    option.value = String(value);
  });
  select.addEventListener("change", () => onChange(Number(select.value)));
  keepKeys(select);
  return select;
}

/** Keys pressed in a control stay with it: a notebook goes to another cell at an arrow, or adds one at "b". */
function keepKeys(control) {
  control.addEventListener("keydown", (event) => {
    const typed = event.shiftKey && event.key.length === 1; // a capital letter
    if (typed || !(event.shiftKey || event.ctrlKey || event.altKey || event.metaKey)) event.stopPropagation();
  });
}

/** A canvas of w x h page pixels, sharp on this screen. */
function fit(canvas, w, h) {
  const dense = window.devicePixelRatio || 1;
  const [pw, ph] = [Math.round(w * dense), Math.round(h * dense)];
  if (canvas.width !== pw || canvas.height !== ph) {
    canvas.width = pw;
    canvas.height = ph;
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, w, h);
  return context;
}

/** Arrow keys as (dx, dy); other keys are left alone. */
function onArrows(node, move) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  node.addEventListener("keydown", (event) => {
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own use for arrow keys
    move(...steps[event.key]);
  });
}

/** A token inside a sentence: quoted and isolated, so that none turns the sentence round. */
const quoted = (token) => `\u201c\u2068${token.replace(/^▁(?=.)/u, "")}\u2069\u201d`;
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const number = (x) => (Math.abs(x) < 0.0995 && x !== 0 ? x.toFixed(3) : x.toFixed(2));

/** Each token of a text with two bars under it. */
function strip(parent, data, label, onPoint) {
  const box = make("div", parent, "lens-strip");
  const head = make("p", box, "lens-faint", label);
  const line = make("div", box, "lens-sentence");
  line.setAttribute("aria-hidden", "true"); // the maps and the sentences say the same in words
  const words = data.tokens.map((token, i) => {
    const word = make("span", line, data.mask[i] ? "lens-word" : "lens-word lens-padding");
    if (token.startsWith("▁")) word.classList.add("lens-begins");
    make("bdi", word, "", token.replace(/^▁(?=.)/u, ""));
    const bars = make("span", word, "lens-bars");
    if (onPoint && data.mask[i]) {
      word.addEventListener("pointerenter", () => onPoint(i, false));
      word.addEventListener("click", () => onPoint(i, true));
    }
    return { word, pieces: [make("i", bars, "lens-t"), make("i", bars, "lens-s")] };
  });
  if (onPoint) line.addEventListener("pointerleave", () => onPoint(null, false));
  return {
    box, head, words,
    draw(values, top, lit = null) {
      words.forEach(({ word, pieces }, i) => {
        word.classList.toggle("lens-lit", i === lit);
        pieces.forEach((piece, which) => {
          piece.style.height = `${((100 * Math.abs(values[which][i])) / top).toFixed(1)}%`;
          piece.classList.toggle("lens-below", values[which][i] < 0);
        });
      });
    },
  };
}

/** How many tokens two texts share at their beginnings and at their ends. */
function sharedEnds(one, other) {
  const most = Math.min(one.length, other.length);
  let begin = 0, end = 0;
  while (begin < most && one[begin] === other[begin]) begin++;
  while (end < most - begin && one[one.length - 1 - end] === other[other.length - 1 - end]) end++;
  return [begin, end];
}

const indexOfMost = (values) => values.indexOf(Math.max(...values));
const signed = (x, digits = 2) => {
  const size = Math.abs(x).toFixed(digits);
  return (Number(size) === 0 ? "" : x < 0 ? "\u2212" : "+") + size;
};

// ------------------------------------------------------------------ the lens

function render({ model, el }) {
  const begun = performance.now();
  const canvasFont = (size) => `${size}px system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif`;

  let now = readData(model), kept = null; // the text shown, and the one it is compared with
  let theme = LIGHT, tables = null, metric = "js", pointer = null, pinned = false, pair = null;
  let width = 0, columns = 3, side = 0, gutter = 0, foot = 0, size = 12, every = 1;
  const { steps, blocks } = now;
  const get = (name) => model.get(name);
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };

  // ---- the page

  const root = make("section", el, "comet-lens");
  root.setAttribute("aria-label", "Attention lens");
  const head = make("div", root, "lens-head");
  const box = get("live") ? textBox() : null;
  const answers = make("table", head, "lens-answers");
  const compared = make("p", root, "lens-compared");
  compared.setAttribute("aria-live", "polite");
  const title = make("p", root, "lens-finding");
  title.setAttribute("aria-live", "polite");
  const looks = make("span", title);
  const apart = make("span", title, "lens-apart");
  const bar = make("div", root, "lens-bar");
  let slider = null, stepText = null, play = null, playing = 0;
  if (steps.length > 1) {
    play = make("button", bar, "lens-play", "Play");
    play.type = "button";
    play.addEventListener("click", () => (playing ? pause() : playFrom(pair.k + 1 < steps.length ? pair.k + 1 : 0)));
    keepKeys(play);
    const wrap = make("label", bar, "lens-choice");
    make("span", wrap, "", "training step");
    slider = make("input", wrap);
    slider.type = "range";
    slider.min = "0";
    slider.max = String(steps.length - 1);
    slider.addEventListener("input", () => {
      pause();
      set({ step: Number(slider.value) });
    });
    keepKeys(slider);
    stepText = make("output", wrap);
  }
  function pause() {
    clearTimeout(playing);
    playing = 0;
    play.textContent = "Play";
  }
  /** Shows one training step after the other, to the last. */
  function playFrom(k) {
    set({ step: k });
    if (k + 1 === steps.length) return pause();
    play.textContent = "Pause";
    playing = setTimeout(playFrom, PACE, k + 1);
    return undefined;
  }
  const headChoice = (who, block) => {
    if (!block) return null;
    const count = block.shape[block.shape.length - 3];
    const options = [[-1, "mean"]];
    for (let i = 0; i < count; i++) options.push([i, `head ${i}`]);
    return choices(bar, `${who}'s heads`, options, (value) => set({ [`${who}_head`]: value }));
  };
  const headSelects = {
    teacher: headChoice("teacher", blocks.teacherHeads),
    student: headChoice("student", blocks.studentHeads),
  };
  if (now.headsLeftOut) make("span", bar, "lens-faint", "Single heads are left out to keep this page small.");
  if (!bar.childNodes.length) bar.remove();

  const maps = make("div", root, "lens-maps");
  const panels = ["teacher", "student", "difference"].map((name) => {
    const panel = make("div", maps, "lens-panel");
    const heading = make("div", panel, "lens-caption");
    const axis = make("canvas", panel, "lens-axis");
    axis.setAttribute("aria-hidden", "true");
    const canvas = make("canvas", panel, "lens-map");
    canvas.dataset.map = name;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "attention map");
    const legend = make("canvas", panel, "lens-legend");
    legend.setAttribute("role", "img");
    return { name, heading, axis, canvas, legend, values: null, paint: document.createElement("canvas") };
  });
  const under = make("div", root, "lens-under");
  const readout = make("p", under, "lens-readout");
  const key = make("span", under, "lens-key lens-faint");
  make("i", key, "lens-t");
  make("span", key, "", "teacher");
  make("i", key, "lens-s");
  make("span", key, "", "student");
  readout.setAttribute("aria-live", "polite");
  const strips = make("div", root, "lens-strips");
  let attention = null, hidden = null, keptStrip = null;

  const lower = make("div", root, "lens-lower");
  const gridBox = make("div", lower, "lens-gridbox");
  const gridBar = make("div", gridBox, "lens-bar");
  const metricSelect = choices(
    gridBar, "compare layers by", [[0, "distance (Jensen-Shannon, nats)"], [1, "similarity (linear CKA, 0 to 1)"]],
    (value) => { metric = value ? "cka" : "js"; drawGrid(); },
  );
  const grid = make("canvas", gridBox, "lens-grid");
  grid.tabIndex = 0;
  grid.setAttribute("role", "application");
  grid.setAttribute("aria-roledescription", "grid of layers");
  const notes = make("div", lower, "lens-notes");
  const gridText = make("p", notes, "lens-gridtext");
  gridText.setAttribute("aria-live", "polite");
  make("p", notes, "lens-faint", "Click a cell to see that pair of layers. The darker a cell, the more alike the two. Orange frame: the teacher layer that a student layer learns from; blue frame: the pair shown. Bars: entropy of each layer's attention, from 0 (each token looks at one) to the thin line (it looks at all alike).");
  make("p", notes, "lens-faint", `A click or a tap keeps a row lit. ${HELP}`);
  make("p", notes, "lens-faint", "Color grows with the square root of the attention. Maps are stored in one byte a number; the error is at most 0.4 % of a map's largest number.");

  // ---- another text

  /** The text box; its `replied` takes the kernel's messages. */
  function textBox() {
    const form = make("div", head, "lens-ask");
    const label = make("label", form, "lens-text");
    make("span", label, "lens-faint", "Your sentence: type, and maps and answers follow");
    const text = make("textarea", label);
    text.rows = 2;
    text.maxLength = 4000;
    text.spellcheck = false;
    text.value = now.text ?? "";
    keepKeys(text);
    const tools = make("div", form, "lens-bar");
    const history = make("select", tools);
    history.setAttribute("aria-label", "sentences tried");
    keepKeys(history);
    const keep = make("button", tools);
    keep.type = "button";
    const status = make("span", tools, "lens-status");
    status.setAttribute("role", "status");

    let serial = 0, flight = null, wanted = null, typing = 0, hiding = 0;
    const say = (words, fault = false) => {
      status.textContent = words;
      status.classList.toggle("lens-fault", fault);
      text.setAttribute("aria-invalid", String(fault));
    };
    const send = (content, since) => {
      flight = { id: ++serial, since, hides: Boolean(content.hide) };
      const { id } = flight;
      setTimeout(() => {
        if (flight?.id === id) say(`The kernel has not answered: it is busy, or gone (then run this cell again). Shown is still ${quoted(now.text)}.`, true);
      }, PATIENCE);
      try {
        model.send({ id, ...content });
      } catch {
        say(`No kernel answers: run this cell again. Shown is still ${quoted(now.text)}.`, true);
      }
    };
    const ask = (words, since) => { // one text at a time; of those typed meanwhile, the last
      clearTimeout(typing);
      clearTimeout(hiding);
      if (flight) wanted = { words, since };
      if (flight && performance.now() - flight.since < PATIENCE) return;
      wanted = null;
      send({ text: words }, since);
    };
    const replied = ({ id, error, ms }) => {
      if (flight?.id !== id) return;
      const { since, hides } = flight;
      flight = null;
      if (wanted) return ask(wanted.words, wanted.since);
      if (error) say(error, true);
      if (hides) return undefined;
      if (now.answers && !losses()) hiding = setTimeout(() => send({ hide: true }, performance.now()), 300);
      if (error) return undefined;
      say(`read in ${ms} ms`);
      requestAnimationFrame(() => setTimeout(() => { // after it is painted
        root.dataset.typed = String(Math.round(performance.now() - since));
      }));
      return undefined;
    };
    text.addEventListener("input", (event) => {
      if (event.isComposing) return;
      const since = performance.now();
      clearTimeout(typing);
      typing = setTimeout(() => ask(text.value, since), TYPED);
    });
    text.addEventListener("compositionend", () => ask(text.value, performance.now()));
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      ask(text.value, performance.now());
    });
    history.addEventListener("change", () => {
      const words = get("tried")[Number(history.value)];
      text.value = words;
      ask(words, performance.now());
    });
    keep.addEventListener("click", () => {
      kept = kept ? null : now;
      fresh();
      drawPair();
      if (kept) {
        say("Now change a word.");
        text.focus();
      }
    });
    return {
      replied,
      draw() {
        keep.textContent = kept ? "Stop comparing" : "Compare with this sentence";
        const tried = get("tried") ?? [];
        history.replaceChildren();
        make("option", history, "", `sentences tried (${tried.length})`).value = "";
        tried.forEach((words, i) => {
          const short = [...words].length > 60 ? `${[...words].slice(0, 60).join("")}…` : words;
          make("option", history, "", short).value = String(i);
        });
        history.hidden = tried.length < 2;
        if (document.activeElement !== text) text.value = now.text;
      },
    };
  }

  /** Builds what depends on the tokens. */
  function fresh() {
    strips.replaceChildren();
    keptStrip = kept && strip(strips, kept, `Compared with: ${kept.text} (mean attention)`);
    attention = strip(strips, now, "", (q, click) => point(q, null, click));
    hidden = now.answers ? strip(strips, now, "", (q, click) => point(q, null, click)) : null;
    if (kept) {
      const [begin, end] = sharedEnds(kept.tokens, now.tokens);
      for (const one of [keptStrip, attention]) {
        one.words.forEach(({ word }, i) => word.classList.toggle("lens-changed", i >= begin && i < one.words.length - end));
      }
    }
    pointer = null;
    pinned = false;
    box?.draw();
  }

  // ---- what is shown

  const stepIndex = () => clamp(get("step") < 0 ? get("step") + blocks.student.shape[0] : get("step"), 0, blocks.student.shape[0] - 1);

  function readPair() {
    const [t, s, k] = [clamp(get("teacher_layer"), 0, now.T - 1), clamp(get("student_layer"), 0, now.S - 1), stepIndex()];
    const th = blocks.teacherHeads ? get("teacher_head") ?? -1 : -1, sh = blocks.studentHeads ? get("student_head") ?? -1 : -1;
    const teacher = now.teacherMap(t, th), student = now.studentMap(k, s, sh);
    const difference = student.map((v, i) => v - teacher[i]);
    pair = {
      t, s, k, th, sh,
      top: Math.max(largest(teacher), largest(student), 1e-9), limit: Math.max(largest(difference), 1e-9),
    };
    pair.measures = measure(now, pair);
    [teacher, student, difference].forEach((values, i) => { panels[i].values = values; });
  }

  const headName = (h) => (h < 0 ? "" : `, head ${h},`);
  /** A step is a number, or has a name. */
  const stepName = (comma = "") => (typeof steps[pair.k] === "number" ? `${comma ? " at " : ""}step ${steps[pair.k]}` : `${comma}${steps[pair.k]}${comma.trim()}`);

  function drawFinding() {
    const { tokens, valid } = now;
    const name = `Student layer ${pair.s}${headName(pair.sh)}` + (steps.length ? stepName(", ") : "");
    const other = `teacher layer ${pair.t}${headName(pair.th)}`;
    apart.textContent = "";
    if (valid.length < 2) {
      looks.textContent = `${name} and ${other}: ${valid.length} token, nothing to compare`;
      return;
    }
    const [a, b] = [0, 1].map((i) => meanRow(now, panels[i].values));
    const more = valid.map((i) => b[i] - a[i]);
    const at = (value) => quoted(tokens[valid[more.indexOf(value)]]);
    const [most, least] = [Math.max(...more), Math.min(...more)];
    const same = Math.max(most, -least) < 0.0005;
    const words = same ? "looks at the same tokens as" : `looks more at ${at(most)} and less at ${at(least)} than`;
    looks.textContent = `${name} ${words} ${other}`.replace(/,$/, "");
    apart.textContent = `${pair.measures.js[pair.s][pair.t].toFixed(2)} nats apart (${SCALE})`;
  }

  /** Rows of the answers' table: name, class, probabilities now, and those of the text kept. */
  function answerRows() {
    const rows = (data) => data?.answers && [
      ["teacher", "lens-t", data.answers.teacher],
      ["student", "lens-s", data.answers.student[pair.k]],
      ...Object.entries(data.answers.baselines ?? {}).map(([name, p]) => [name, "lens-b", p]),
    ];
    const before = rows(kept);
    return (rows(now) ?? []).map(([name, color, p], i) => ({ name, color, p, before: before?.[i]?.[2] }));
  }

  function drawAnswers() {
    answers.hidden = !now.answers;
    answers.replaceChildren();
    if (!now.answers) return;
    make("caption", answers, "lens-faint", "What they answer: probability of each label" + (kept ? " (and the change)" : ""));
    const head = make("tr", make("thead", answers));
    for (const label of ["", ...now.answers.labels]) make("th", head, "", label).scope = "col";
    const body = make("tbody", answers);
    for (const { name, color, p, before } of answerRows()) {
      const row = make("tr", body);
      make("th", row, "", name).scope = "row";
      p.forEach((value, i) => {
        const cell = make("td", row, i === indexOfMost(p) ? "lens-most" : "");
        make("span", cell, "", value.toFixed(2) + (before ? ` (${signed(value - before[i])})` : ""));
        make("i", cell, color).style.width = `${(100 * value).toFixed(1)}%`;
      });
    }
  }

  /** What changed between the text kept and this one, in words. */
  function drawCompared() {
    compared.hidden = !kept || kept === now;
    if (compared.hidden) return;
    const [begin, end] = sharedEnds(kept.tokens, now.tokens);
    const changed = [kept, now].map(({ tokens }) => tokens.slice(begin, tokens.length - end).map((token) => token.replace(/^▁/u, " ")).join("").trim());
    const parts = [`${changed[0] ? quoted(changed[0]) : "Nothing"} became ${changed[1] ? quoted(changed[1]) : "nothing"}.`];
    for (const [i, { name, p, before }] of answerRows().entries()) {
      const [was, is] = [indexOfMost(before), indexOfMost(p)];
      const { labels } = now.answers;
      const who = i < 2 ? `The ${name}` : name;
      parts.push(was === is ? `${who} still says ${labels[is]} (${before[is].toFixed(2)}, now ${p[is].toFixed(2)}).`
        : `${who} said ${labels[was]} (${before[was].toFixed(2)}) and now says ${labels[is]} (${p[is].toFixed(2)}).`);
    }
    const old = keptRows();
    const moved = ["teacher", "student"].map((name, which) => {
      const row = meanRow(now, panels[which].values);
      const shift = row.map((x, i) => (i < begin ? x - old[which][i] : i >= now.n - end ? x - old[which][i - now.n + kept.n] : 0));
      const at = indexOfMost(shift.map(Math.abs));
      return `for the ${name} at ${quoted(now.tokens[at])} (${signed(shift[at], 3)})`;
    });
    if (begin + end) parts.push(`Of the tokens in both, mean attention changed most ${moved.join(", ")}.`);
    compared.textContent = parts.join(" ");
  }

  const keptRows = () => [kept.teacherMap(pair.t, pair.th), kept.studentMap(pair.k, pair.s, pair.sh)].map((values) => meanRow(kept, values));

  /** Occlusion at this step: what each model's answer loses when a token is hidden; null if unknown. */
  function losses() {
    const { teacher, student } = get("occlusion") ?? {};
    return teacher && hidden && teacher.length === now.n ? [teacher, student[pair.k]] : null;
  }

/** The colors of a panel, one pixel a number; drawn large by `drawPanel`. */
  function paintPanel(panel) {
    const { n } = now, signed = panel.name === "difference";
    const table = signed ? tables.signed : tables.map;
    panel.paint.width = panel.paint.height = n;
    const context = panel.paint.getContext("2d");
    const image = context.createImageData(n, n);
    for (let i = 0; i < n * n; i++) {
      const share = Math.sqrt(Math.abs(panel.values[i]) / (signed ? pair.limit : pair.top));
      const at = Math.round(signed ? 127.5 + 127.5 * Math.sign(panel.values[i]) * share : 255 * share);
      image.data[4 * i] = table[3 * at];
      image.data[4 * i + 1] = table[3 * at + 1];
      image.data[4 * i + 2] = table[3 * at + 2];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function hatch(context, x, y, w, h) {
    context.save();
    context.beginPath();
    context.rect(x, y, w, h);
    context.clip();
    context.fillStyle = theme.paper;
    context.fillRect(x, y, w, h);
    context.strokeStyle = theme.faint;
    context.lineWidth = 0.7;
    context.beginPath();
    for (let d = -h; d < w; d += 6) {
      context.moveTo(x + d, y + h);
      context.lineTo(x + d + h, y);
    }
    context.stroke();
    context.restore();
  }

  /** Labels along an axis: every so many, and the lit one always. */
  function axisLabels(context, vertical, lit) {
    const { n, names, mask } = now, cell = side / n;
    context.font = canvasFont(size);
    context.textBaseline = "middle";
    context.textAlign = "right";
    let last = -size;
    const one = (i, strong) => {
      const along = clamp((i + 0.5) * cell, size / 2, side - size / 2);
      if (!strong && along - last < 0.95 * size) return;
      last = along;
      context.save();
      context.translate(...(vertical ? [AXIS + gutter - 4, along] : [along, side + 6]));
      if (!vertical) context.rotate(-Math.PI / 2);
      if (strong) {
        const wide = context.measureText(names[i]).width;
        context.fillStyle = theme.paper;
        context.fillRect(-wide - 3, -size * 0.6, wide + 6, size * 1.2);
        context.font = `600 ${canvasFont(size)}`;
      }
      context.fillStyle = strong ? theme.mark : mask[i] ? theme.ink : theme.faint;
      context.fillText(names[i], 0, 0, (vertical ? gutter : foot - 8) - 4);
      context.restore();
    };
    for (let i = 0; i < n; i += every) {
      if (lit === null || Math.abs(i - lit) * cell >= 1.1 * size) one(i, false); // room for the lit one
    }
    if (lit !== null) one(lit, true);
    context.save(); // the axis title
    context.translate(...(vertical ? [AXIS / 2, side / 2] : [side / 2, side + foot + AXIS / 2]));
    if (vertical) context.rotate(-Math.PI / 2);
    context.font = canvasFont(12);
    context.fillStyle = theme.faint;
    context.textAlign = "center";
    context.fillText(vertical ? "token that looks" : "token looked at", 0, 0);
    context.restore();
  }

  function drawPanel(panel) {
    const context = fit(panel.canvas, side, side + foot + AXIS);
    const { n, mask } = now, cell = side / n;
    context.imageSmoothingEnabled = false;
    context.drawImage(panel.paint, 0, 0, side, side);
    mask.forEach((m, i) => {
      if (m || mask[i - 1] === 0) return; // a run of padding is hatched at its first
      let end = i;
      while (end < n && !mask[end]) end++;
      hatch(context, i * cell, 0, (end - i) * cell, side);
      hatch(context, 0, i * cell, side, (end - i) * cell);
    });
    const { q, k } = pointer ?? { q: null, k: null };
    if (q !== null) { // the other rows step back
      context.fillStyle = theme.paper;
      context.globalAlpha = 0.6;
      context.fillRect(0, 0, side, q * cell);
      context.fillRect(0, (q + 1) * cell, side, side - (q + 1) * cell);
      context.globalAlpha = 1;
      context.strokeStyle = theme.mark;
      context.lineWidth = 1.5;
      context.strokeRect(0.75, q * cell - 0.75, side - 1.5, cell + 1.5);
      if (k !== null) {
        context.strokeStyle = theme.ink;
        context.strokeRect(k * cell - 0.75, q * cell - 0.75, cell + 1.5, cell + 1.5);
      }
    } else {
      context.strokeStyle = theme.line;
      context.strokeRect(0.5, 0.5, side - 1, side - 1);
    }
    axisLabels(context, false, k);
    if (!panel.axis.hidden) axisLabels(fit(panel.axis, AXIS + gutter, side), true, q);
  }

  function drawLegend(panel) {
    const signed = panel.name === "difference";
    const context = fit(panel.legend, side, 30);
    const table = signed ? tables.signed : tables.map;
    const narrow = side < 170; // no room for a number in the middle
    const wide = Math.min(side - (narrow ? 34 : 60), 220), left = (side - wide) / 2;
    for (let i = 0; i < wide; i++) {
      context.fillStyle = css(table, Math.round((i / (wide - 1)) * 255));
      context.fillRect(left + i, 2, 1.5, 8);
    }
    context.strokeStyle = theme.line;
    context.strokeRect(left - 0.5, 1.5, wide + 1, 9);
    context.fillStyle = theme.faint;
    context.font = canvasFont(11);
    context.textAlign = "center";
    context.textBaseline = "top";
    const top = signed ? pair.limit : pair.top;
    const marks = signed ? [[0, -top], [0.5, 0], [1, top]] : [[0, 0], [0.5, top / 4], [1, top]];
    if (narrow) marks.splice(1, 1);
    marks.forEach(([at, value]) => context.fillText((signed && value > 0 ? "+" : "") + number(value), left + at * wide, 14));
    panel.legend.setAttribute("aria-label", `colors from ${number(marks[0][1])} to ${number(top)}`);
  }

  function describePoint() {
    if (!pointer || pointer.q === null) return "Point at a cell or a token: its row lights up in all three maps. Until then the bars show the mean row.";
    const { q, k } = pointer, { n, tokens } = now;
    const [a, b] = panels.map((panel) => panel.values);
    const lost = losses();
    const without = (i) => (lost ? ` Hidden, ${quoted(tokens[i])} takes ${lost[0][i].toFixed(2)} from the teacher's answer, ${lost[1][i].toFixed(2)} from the student's.` : "");
    const pin = pinned ? " Kept: click again or press Escape to let go." : "";
    if (k === null) return `${quoted(tokens[q])} looks at the tokens with long bars.${without(q)}${pin}`;
    const [x, y] = [a[q * n + k], b[q * n + k]];
    return `${quoted(tokens[q])} looks at ${quoted(tokens[k])}: teacher ${number(x)}, student ${number(y)}, difference ${y >= x ? "+" : "−"}${number(Math.abs(y - x))}.${without(k)}${pin}`;
  }

  function drawStrips() {
    const q = pointer && pointer.q !== null ? pointer.q : null, { n } = now;
    const rows = [0, 1].map((i) => (q === null ? meanRow(now, panels[i].values) : [...panels[i].values.slice(q * n, (q + 1) * n)]));
    const old = kept && keptRows();
    const top = Math.max(...rows.flat(), ...(old ?? []).flat(), 1e-9);
    attention.draw(rows, top, q);
    attention.head.textContent = (q === null ? "Where they look: each token's mean attention" : `Where ${quoted(now.tokens[q])} looks`) + ` (longest bar: ${number(top)})`;
    keptStrip?.draw(old, top);
    const lost = losses();
    if (!hidden) return;
    hidden.box.hidden = !lost;
    if (!lost) return;
    const most = Math.max(...lost.flat().map(Math.abs), 1e-9);
    hidden.draw(lost, most, q);
    const own = [now.answers.teacher, now.answers.student[pair.k]].map((p) => now.answers.labels[indexOfMost(p)]);
    const at = lost.map((values) => quoted(now.tokens[indexOfMost(values)]));
    hidden.head.textContent = `What the answer loses when a token is hidden from all others (longest bar: ${number(most)}; hollow: it gains). ` +
      `The teacher's ${quoted(own[0])} loses most without ${at[0]}, the student's ${quoted(own[1])} without ${at[1]}. Where a model looks need not be what its answer hangs on.`;
  }

  function drawPointer() {
    panels.forEach(drawPanel);
    drawStrips();
    readout.textContent = describePoint();
    root.dataset.row = pointer && pointer.q !== null ? String(pointer.q) : "";
    root.dataset.column = pointer && pointer.k !== null ? String(pointer.k) : "";
  }

  /** Light row q and cell k. A click keeps them lit; a second one on the same lets go. */
  function point(q, k, click = false) {
    if (pinned && !click) return;
    const same = pointer ? pointer.q === q && pointer.k === k : q === null;
    if (same && !click) return;
    pinned = click && q !== null && !(pinned && same);
    pointer = q === null ? null : { q, k };
    drawPointer();
  }

  // ---- the grid of layers, with the entropies along its sides

  let cells = null; // where the grid's cells are, for the pointer

  function drawGrid() {
    const room = Math.max(160, Math.min(gridBox.clientWidth || 400, 760));
    const { T, S, matches } = now, { measures } = pair;
    const strip = 46, left = 24, below = 34; // the frames are drawn in the cells' margins
    const w = clamp((room - left - strip - 34) / T, 6, 64), h = clamp(w, 18, 28);
    const [width, height] = [left + T * w + 10 + strip + 24, strip + 12 + S * h + below];
    const context = fit(grid, width, height);
    const top = strip + 8;
    cells = { left, top, w, h };
    const edge = w < 20 ? 2 : 4;
    const table = measures[metric];
    const all = table.flat();
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const share = (v) => (high === low ? 0.5 : metric === "js" ? (v - low) / (high - low) : (high - v) / (high - low));
    context.font = canvasFont(11);
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let s = 0; s < S; s++) {
      for (let t = 0; t < T; t++) {
        const at = Math.round(255 * share(table[s][t]));
        context.fillStyle = css(tables.grid, at);
        context.fillRect(left + t * w + edge, top + s * h + edge, w - 2 * edge, h - 2 * edge);
        if (w >= 36) {
          context.fillStyle = at > 140 ? "#000" : "#fff";
          context.fillText(table[s][t].toFixed(2), left + (t + 0.5) * w, top + (s + 0.5) * h);
        }
      }
    }
    context.lineWidth = 2;
    const frame = (t, s, inset) => context.strokeRect(left + t * w + inset, top + s * h + inset, w - 2 * inset, h - 2 * inset);
    context.strokeStyle = theme.student;
    matches.forEach((t, s) => frame(t, s, edge - 1));
    context.strokeStyle = theme.mark;
    if (edge < 4) context.setLineDash([3, 3]); // on the other frame
    frame(pair.t, pair.s, 1);
    context.setLineDash([]);

    // entropy: above, the teacher's layers; at the right, the student's; filled: the layer shown
    const most = Math.log(Math.max(2, now.valid.length));
    const bar = (x, y, w, h, filled) => {
      context.fillRect(x, y, w, h);
      if (!filled && w > 3 && h > 3) context.clearRect(x + 1.5, y + 1.5, w - 3, h - 3);
    };
    context.fillStyle = theme.teacher;
    measures.teacherEntropy.forEach((e, t) => {
      const tall = (strip - 8) * Math.min(1, e / most);
      bar(left + t * w + 1, top - 6 - tall, w - 2, tall, t === pair.t);
    });
    context.fillStyle = theme.student;
    measures.studentEntropy.forEach((e, s) => {
      bar(left + T * w + 6, top + s * h + 2, (strip - 8) * Math.min(1, e / most), h - 4, s === pair.s);
    });
    context.strokeStyle = theme.line;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(left, top - 6 - (strip - 8) + 0.5);
    context.lineTo(left + T * w, top - 6 - (strip - 8) + 0.5);
    context.moveTo(left + T * w + 6 + strip - 8, top);
    context.lineTo(left + T * w + 6 + strip - 8, top + S * h);
    context.stroke();

    context.fillStyle = theme.faint;
    const skip = w < 18 ? 2 : 1;
    for (let t = 0; t < T; t += skip) context.fillText(String(t), left + (t + 0.5) * w, top + S * h + 9);
    for (let s = 0; s < S; s++) context.fillText(String(s), left - 10, top + (s + 0.5) * h);
    context.textAlign = "left";
    context.fillText("teacher layer", left, top + S * h + 24);
    context.fillText("entropy", left + T * w + 6, top - 16);
    context.save();
    context.translate(left + T * w + 6 + strip + 4, top);
    context.rotate(Math.PI / 2);
    context.fillText("student layer", 0, 0);
    context.restore();

    const one = (who, head) => (head < 0 ? `${who}: mean of the heads` : `${who}: head ${head} of every layer`);
    const heads = pair.th < 0 && pair.sh < 0 ? "" : `The table speaks of the heads chosen (${one("teacher", pair.th)}; ${one("student", pair.sh)}). `;
    gridText.textContent = heads +
      `Teacher layer ${pair.t}: entropy ${measures.teacherEntropy[pair.t].toFixed(2)} of ${most.toFixed(2)} nats. ` +
      `Student layer ${pair.s}: ${measures.studentEntropy[pair.s].toFixed(2)}. ` +
      `Distance: ${measures.js[pair.s][pair.t].toFixed(3)} nats (Jensen-Shannon; ${SCALE}). Similarity: ${measures.cka[pair.s][pair.t].toFixed(2)} (CKA; 1: alike).`;
    const what = metric === "js" ? "Distance" : "Similarity";
    grid.setAttribute("aria-label", `${what} of each of ${S} student layers and each of ${T} teacher layers. ${gridText.textContent}`);
  }

  // ---- drawing all

  const breadth = () => Math.floor(root.getBoundingClientRect().width); // clientWidth rounds up

  /** Three maps side by side, or two, or one: the most for which they stay large enough. */
  function layout() {
    width = breadth();
    const room = width || 900, { n, tokens } = now;
    const longest = Math.max(...tokens.map((token) => [...token].length));
    for (columns = 3; columns > 0; columns--) {
      size = clamp((room / (columns + 0.6) / n) * 0.72, 10, 13);
      gutter = Math.min(clamp(8 + longest * size * 0.62, 36, 110), room * 0.16, Math.max(24, room - 240 - AXIS));
      side = Math.floor(clamp((room - AXIS - gutter - (columns - 1) * 14) / columns, 80, 430));
      if (side >= 180) break;
    }
    columns = Math.max(1, columns);
    foot = gutter + 6;
    // Labels nearer than this: one's "_" is a macron on the next, and dots below meet accents.
    every = Math.max(1, Math.ceil((1.2 * 9) / (side / n)));
    size = clamp(((side / n) * every) / 1.3, 9, size);
    root.classList.toggle("lens-stacked", columns === 1);
    panels.forEach((panel, i) => { panel.axis.hidden = i % columns !== 0; });
  }

  function drawAll() {
    theme = isDark(el) ? DARK : LIGHT;
    root.dataset.theme = theme === DARK ? "dark" : "light";
    tables = { map: ramp(theme.map), signed: ramp(theme.signed), grid: ramp(GRID) };
    layout();
    drawPair();
  }

  function drawPair() {
    readPair();
    const head = (h) => (h < 0 ? "" : `, head ${h}`);
    const titles = [`teacher, layer ${pair.t}${head(pair.th)}`, `student, layer ${pair.s}${head(pair.sh)}`, "student − teacher"];
    panels.forEach((panel, i) => {
      panel.heading.textContent = titles[i];
      panel.heading.style.maxWidth = `${side}px`;
      panel.canvas.setAttribute("aria-label", `${titles[i]}: ${now.n} by ${now.n} tokens. ${HELP}`);
      paintPanel(panel);
      drawLegend(panel);
    });
    drawFinding();
    drawAnswers();
    drawCompared();
    if (slider) {
      slider.value = String(pair.k);
      stepText.textContent = String(steps[pair.k]);
      slider.setAttribute("aria-valuetext", stepName());
    }
    if (headSelects.teacher) headSelects.teacher.value = String(pair.th);
    if (headSelects.student) headSelects.student.value = String(pair.sh);
    root.dataset.pair = `${pair.t} ${pair.s}`;
    drawGrid();
    drawPointer();
  }

  // ---- what the reader does

  const cellAt = (panel, event) => {
    const box = panel.canvas.getBoundingClientRect(), { n, mask } = now;
    const [k, q] = [event.clientX - box.left, event.clientY - box.top].map((v) => Math.floor(v / (side / n)));
    const inside = k >= 0 && q >= 0 && k < n && q < n && mask[q] && mask[k];
    return inside ? [q, k] : [null, null];
  };
  panels.forEach((panel) => {
    panel.canvas.addEventListener("pointermove", (event) => point(...cellAt(panel, event)));
    panel.canvas.addEventListener("pointerleave", () => point(null, null));
    panel.canvas.addEventListener("click", (event) => point(...cellAt(panel, event), true));
    onArrows(panel.canvas, (dx, dy) => {
      const { mask } = now;
      const first = mask.indexOf(1), last = mask.lastIndexOf(1);
      if (first < 0) return;
      const { q, k } = pointer ?? { q: null, k: null };
      const step = (i, d) => {
        let j = i === null ? first : i + d;
        while (j > first && j < last && !mask[j]) j += d || 1;
        return clamp(j, first, last);
      };
      pinned = false;
      point(step(q, dy), step(k, dx));
      pinned = true;
    });
  });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !pinned) return;
    event.stopPropagation();
    point(null, null, true);
  });

  grid.addEventListener("click", (event) => {
    const box = grid.getBoundingClientRect();
    const t = Math.floor((event.clientX - box.left - cells.left) / cells.w);
    const s = Math.floor((event.clientY - box.top - cells.top) / cells.h);
    if (t >= 0 && t < now.T && s >= 0 && s < now.S) set({ teacher_layer: t, student_layer: s });
  });
  onArrows(grid, (dx, dy) => set({
    teacher_layer: clamp(pair.t + dx, 0, now.T - 1), student_layer: clamp(pair.s + dy, 0, now.S - 1),
  }));

  const chosen = ["teacher_layer", "student_layer", "step", "teacher_head", "student_head"];
  let waiting = false; // several changes in one turn are drawn once
  const changed = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; drawPair(); });
  };
  chosen.forEach((name) => model.on(`change:${name}`, changed));
  const another = () => {
    now = readData(model);
    fresh();
    drawAll();
  };
  const more = { "change:header": another, "change:occlusion": changed, "change:tried": () => box?.draw(), "msg:custom": (message) => box?.replied(message) };
  for (const [name, call] of Object.entries(more)) model.on(name, call);

  // In the next frame: a change of theme may swap style sheets, and in between the page is narrow.
  const themes = new MutationObserver(() => requestAnimationFrame(drawAll));
  themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "theme"] });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", drawAll);
  const sizes = new ResizeObserver(() => {
    if (breadth() && breadth() !== width) drawAll();
  });
  fresh();
  drawAll();
  sizes.observe(root);
  metricSelect.value = "0";
  requestAnimationFrame(() => setTimeout(() => { // after the first paint
    root.dataset.painted = String(Math.round(performance.now() - begun));
  }));

  return () => {
    clearTimeout(playing);
    themes.disconnect();
    sizes.disconnect();
    scheme.removeEventListener("change", drawAll);
    chosen.forEach((name) => model.off(`change:${name}`, changed));
    for (const [name, call] of Object.entries(more)) model.off(name, call);
  };
}

export default { render };
