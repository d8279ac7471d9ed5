// The attention lens in the browser: a plain ES module, used as it is by the notebook widget
// and by the exported page. `model` gives the data and the selection:
//   header  object, maps  bytes (see payload.py)
//   teacher_layer, student_layer, step, teacher_head, student_head, row  whole numbers
// Text reaches the page by textContent and canvas fillText alone.

const LIGHT = {
  map: "#fcfdbf #fed799 #feb078 #fc8961 #f1605d #d8456c #b73779 #932b80 #721f81 #51127c #2c115f #100b2d #000004",
  signed: "#7f3b08 #aa5306 #d0730f #ef9e3c #fdc57f #fde4c0 #f6f6f7 #dddfed #bfbbda #988dbe #70589f #4d207d #2d004b",
  ink: "#1d1d1f", faint: "#6b6b70", line: "#c9c9ce", paper: "#ffffff", mark: "#0072b2",
  teacher: "#0072b2", student: "#d98200",
};
const DARK = {
  map: "#000004 #100b2d #2c115f #51127c #721f81 #932b80 #b73779 #d8456c #f1605d #fc8961 #feb078 #fed799 #fcfdbf",
  signed: "#ffd9a0 #f9b04f #e08a1c #b0660d #784309 #432606 #17171a #25203a #443a6b #6a5ca0 #9284c6 #bbb0e2 #e4defa",
  ink: "#ececee", faint: "#a2a2a8", line: "#4a4a50", paper: "#17171a", mark: "#56b4e9",
  teacher: "#56b4e9", student: "#e69f00",
};
const GRID = "#00224e #003170 #2a3f6d #434e6c #575d6d #6a6c71 #7d7c78 #918b78 #a59c74 #bcae6c #d2c060 #e9d34e #fee838";
const HELP = "Arrow keys move the query (up, down) and the key (left, right); in the grid of layers they choose the layers.";

// ------------------------------------------------------------------ numbers and colours

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** 256 colours along a list of anchors. */
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
    if (!event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey) event.stopPropagation();
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

// ------------------------------------------------------------------ the lens

function render({ model, el }) {
  const begun = performance.now();
  const header = model.get("header");
  const raw = model.get("maps");
  const bytes = raw instanceof Uint8Array ? raw : new Uint8Array(raw.buffer ?? raw, raw.byteOffset ?? 0, raw.byteLength);
  const { tokens, mask, matches, steps, blocks } = header;
  const n = tokens.length;
  const [T, S] = [blocks.teacher.shape[0], blocks.student.shape[1]];
  const names = tokens.map((token) => token.replace(/^▁/u, "_")); // the block is too heavy on an axis
  const canvasFont = (size) => `${size}px system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif`;

  let theme = LIGHT, tables = null, metric = "js", pointer = null, pair = null;
  let width = 0, side = 0, gutter = 0, foot = 0, size = 12, every = 1;
  const get = (name) => model.get(name);
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };

  // ---- the page

  const root = make("div", el, "comet-lens");
  root.classList.toggle("lens-heads", Boolean(blocks.teacherHeads)); // longer captions
  const title = make("p", root, "lens-finding");
  title.setAttribute("aria-live", "polite");
  const bar = make("div", root, "lens-bar");
  let slider = null, stepText = null;
  if (steps.length > 1) {
    const wrap = make("label", bar, "lens-choice");
    make("span", wrap, "", "training step");
    slider = make("input", wrap);
    slider.type = "range";
    slider.min = "0";
    slider.max = String(steps.length - 1);
    slider.addEventListener("input", () => set({ step: Number(slider.value) }));
    keepKeys(slider);
    stepText = make("output", wrap);
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
  if (header.headsLeftOut) make("span", bar, "lens-faint", "Single heads are left out to keep this page small.");
  if (!bar.childNodes.length) bar.remove();

  const maps = make("div", root, "lens-maps");
  const axis = make("canvas", maps, "lens-axis");
  axis.setAttribute("aria-hidden", "true");
  const panels = ["teacher", "student", "difference"].map((name) => {
    const box = make("div", maps, "lens-panel");
    const caption = make("div", box, "lens-caption");
    const heading = make("span", caption);
    const canvas = make("canvas", box, "lens-map");
    canvas.dataset.map = name;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "attention map");
    const legend = make("canvas", box, "lens-legend");
    legend.setAttribute("role", "img");
    return { name, heading, canvas, legend, values: null, paint: document.createElement("canvas") };
  });
  const under = make("div", root, "lens-under");
  const readout = make("p", under, "lens-readout");
  const key = make("span", under, "lens-key lens-faint");
  make("i", key, "lens-t");
  make("span", key, "", "teacher");
  make("i", key, "lens-s");
  make("span", key, "", "student");
  readout.setAttribute("aria-live", "polite");

  const sentence = make("div", root, "lens-sentence");
  sentence.setAttribute("aria-hidden", "true"); // the maps say the same in words
  const words = tokens.map((token, i) => {
    const word = make("span", sentence, mask[i] ? "lens-word" : "lens-word lens-padding");
    if (token.startsWith("▁")) word.classList.add("lens-begins");
    make("bdi", word, "", token.replace(/^▁(?=.)/u, ""));
    const bars = make("span", word, "lens-bars");
    const pieces = [make("i", bars, "lens-t"), make("i", bars, "lens-s")];
    word.addEventListener("pointerenter", () => mask[i] && point(i, pointer?.k ?? null));
    return { word, pieces };
  });

  const lower = make("div", root, "lens-lower");
  const gridBox = make("div", lower, "lens-gridbox");
  const gridBar = make("div", gridBox, "lens-bar");
  const metricSelect = choices(
    gridBar, "distance of the layers", [[0, "Jensen-Shannon, nats"], [1, "linear CKA, 1 is alike"]],
    (value) => { metric = value ? "cka" : "js"; drawGrid(); },
  );
  const grid = make("canvas", gridBox, "lens-grid");
  grid.tabIndex = 0;
  grid.setAttribute("role", "application");
  grid.setAttribute("aria-roledescription", "grid of layers");
  const notes = make("div", lower, "lens-notes");
  const gridText = make("p", notes, "lens-gridtext");
  gridText.setAttribute("aria-live", "polite");
  make("p", notes, "lens-faint", "Click a cell to see that pair of layers. The darker a cell, the more alike the two. Framed in orange: the teacher layer that a student layer learns from. Bars: entropy of each layer's attention; the thin line is the most it can be.");
  make("p", notes, "lens-faint", HELP);
  make("p", notes, "lens-faint", "Colour grows with the square root of the attention. Maps are stored in one byte a number; the error is at most 0.4 % of a map's largest number.");

  // ---- what is shown

  const stepIndex = () => clamp(get("step") < 0 ? get("step") + blocks.student.shape[0] : get("step"), 0, blocks.student.shape[0] - 1);

  function readPair() {
    const [t, s, k] = [clamp(get("teacher_layer"), 0, T - 1), clamp(get("student_layer"), 0, S - 1), stepIndex()];
    const [th, sh] = [get("teacher_head"), get("student_head")];
    const teacher = th >= 0 && blocks.teacherHeads
      ? readMap(bytes, blocks.teacherHeads, [t, th]) : readMap(bytes, blocks.teacher, [t]);
    const student = sh >= 0 && blocks.studentHeads
      ? readMap(bytes, blocks.studentHeads, [k, s, sh]) : readMap(bytes, blocks.student, [k, s]);
    const difference = student.map((v, i) => v - teacher[i]);
    pair = {
      t, s, k, th, sh,
      top: Math.max(largest(teacher), largest(student), 1e-9), limit: Math.max(largest(difference), 1e-9),
    };
    [teacher, student, difference].forEach((values, i) => { panels[i].values = values; });
  }

  function finding() {
    const name = `Teacher layer ${pair.t} and student layer ${pair.s}` + (steps.length ? ` at step ${steps[pair.k]}` : "");
    const valid = mask.flatMap((m, i) => (m ? [i] : []));
    if (valid.length < 2) return `${name}: ${valid.length} token, nothing to compare`;
    const teacher = readMap(bytes, blocks.teacher, [pair.t]);
    const student = readMap(bytes, blocks.student, [pair.k, pair.s]);
    const more = valid.map((key) => valid.reduce((sum, q) => sum + student[q * n + key] - teacher[q * n + key], 0));
    const at = (value) => quoted(tokens[valid[more.indexOf(value)]]);
    const js = header.js[pair.k][pair.s][pair.t].toFixed(2);
    return `${name} are ${js} nats apart (JS): the student looks more at ${at(Math.max(...more))} and less at ${at(Math.min(...more))}`;
  }

  /** The colours of a panel, one pixel a number; drawn large by `drawPanel`. */
  function paintPanel(panel) {
    const signed = panel.name === "difference";
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
    const cell = side / n;
    context.font = canvasFont(size);
    context.textBaseline = "middle";
    context.textAlign = "right";
    let last = -size;
    const one = (i, strong) => {
      const along = clamp((i + 0.5) * cell, size / 2, side - size / 2);
      if (!strong && along - last < 0.95 * size) return;
      last = along;
      context.save();
      context.translate(...(vertical ? [gutter, along] : [along, side + 6]));
      if (!vertical) context.rotate(-Math.PI / 2);
      if (strong) {
        const wide = context.measureText(names[i]).width;
        context.fillStyle = theme.paper;
        context.fillRect(-wide - 3, -size * 0.6, wide + 6, size * 1.2);
        context.font = `600 ${canvasFont(size)}`;
      }
      context.fillStyle = strong ? theme.mark : mask[i] ? theme.ink : theme.faint;
      context.fillText(names[i], 0, 0, (vertical ? gutter : foot) - 4);
      context.restore();
    };
    for (let i = 0; i < n; i += every) {
      if (lit === null || Math.abs(i - lit) * cell >= 1.1 * size) one(i, false); // room for the lit one
    }
    if (lit !== null) one(lit, true);
  }

  function drawPanel(panel) {
    const context = fit(panel.canvas, side, side + foot);
    const cell = side / n;
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
  }

  function drawAxis() {
    axisLabels(fit(axis, gutter + 8, side), true, pointer ? pointer.q : null);
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
    panel.legend.setAttribute("aria-label", `colours from ${number(marks[0][1])} to ${number(top)}`);
  }

  function describePoint() {
    if (!pointer || pointer.q === null) return "Point at a cell or a token: its row lights up in all three maps. Until then the bars show the mean row.";
    const { q, k } = pointer;
    const [a, b] = panels.map((panel) => panel.values);
    if (k === null) return `${quoted(tokens[q])} looks at the tokens with long bars.`;
    const [x, y] = [a[q * n + k], b[q * n + k]];
    return `${quoted(tokens[q])} looks at ${quoted(tokens[k])}: teacher ${number(x)}, student ${number(y)}, difference ${y >= x ? "+" : "−"}${number(Math.abs(y - x))}`;
  }

  function drawSentence() {
    const q = pointer && pointer.q !== null ? pointer.q : null;
    const average = (values, k) => { // no row chosen: the mean over the rows
      let sum = 0, rows = 0;
      for (let i = 0; i < n; i++) if (mask[i]) { sum += values[i * n + k]; rows++; }
      return rows ? sum / rows : 0;
    };
    const shares = [0, 1].map((which) => tokens.map((_, k) =>
      q === null ? average(panels[which].values, k) : panels[which].values[q * n + k]));
    const top = Math.max(...shares[0], ...shares[1], 1e-9);
    words.forEach(({ word, pieces }, k) => {
      word.classList.toggle("lens-lit", k === q);
      pieces.forEach((piece, which) => { piece.style.width = `${((100 * shares[which][k]) / top).toFixed(1)}%`; });
    });
  }

  function drawPointer() {
    drawAxis();
    panels.forEach(drawPanel);
    drawSentence();
    readout.textContent = describePoint();
    root.dataset.row = pointer && pointer.q !== null ? String(pointer.q) : "";
    root.dataset.column = pointer && pointer.k !== null ? String(pointer.k) : "";
  }

  function point(q, k) {
    if (pointer && pointer.q === q && pointer.k === k) return;
    pointer = q === null ? null : { q, k };
    drawPointer();
  }

  // ---- the grid of layers, with the entropies along its sides

  let cells = null; // where the grid's cells are, for the pointer

  function drawGrid() {
    const room = Math.max(160, Math.min(gridBox.clientWidth || 400, 760));
    const strip = 46, left = 24, below = 34;
    const w = clamp((room - left - strip - 34) / T, 6, 64), h = clamp(w, 18, 28);
    const [width, height] = [left + T * w + 10 + strip + 24, strip + 12 + S * h + below];
    const context = fit(grid, width, height);
    const top = strip + 8;
    cells = { left, top, w, h };
    const table = header[metric][pair.k];
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
        context.fillRect(left + t * w, top + s * h, w - 1, h - 1);
        if (w >= 30) {
          context.fillStyle = at > 140 ? "#000" : "#fff";
          context.fillText(table[s][t].toFixed(2), left + (t + 0.5) * w, top + (s + 0.5) * h);
        }
      }
    }
    context.lineWidth = 2;
    context.strokeStyle = theme.student;
    matches.forEach((t, s) => context.strokeRect(left + t * w + 0.5, top + s * h + 0.5, w - 2, h - 2));
    context.lineWidth = 3;
    context.strokeStyle = theme.mark;
    context.strokeRect(left + pair.t * w - 1.5, top + pair.s * h - 1.5, w + 2, h + 2);

    // entropy: above, the teacher's layers; at the right, the student's
    const most = Math.log(Math.max(2, mask.reduce((a, b) => a + b, 0)));
    header.teacherEntropy.forEach((e, t) => {
      const tall = (strip - 8) * Math.min(1, e / most);
      context.globalAlpha = t === pair.t ? 1 : 0.45;
      context.fillStyle = theme.teacher;
      context.fillRect(left + t * w, top - 6 - tall, w - 1, tall);
    });
    header.studentEntropy[pair.k].forEach((e, s) => {
      context.globalAlpha = s === pair.s ? 1 : 0.45;
      context.fillStyle = theme.student;
      context.fillRect(left + T * w + 6, top + s * h, (strip - 8) * Math.min(1, e / most), h - 1);
    });
    context.globalAlpha = 1;
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
    context.save();
    context.translate(left + T * w + 6 + strip + 4, top);
    context.rotate(Math.PI / 2);
    context.fillText("student layer", 0, 0);
    context.restore();

    const [js, cka] = [header.js[pair.k][pair.s][pair.t], header.cka[pair.k][pair.s][pair.t]];
    gridText.textContent =
      `Teacher layer ${pair.t}: entropy ${header.teacherEntropy[pair.t].toFixed(2)} of ${most.toFixed(2)} nats. ` +
      `Student layer ${pair.s}: ${header.studentEntropy[pair.k][pair.s].toFixed(2)}. ` +
      `Apart: ${js.toFixed(3)} nats (JS); alike: ${cka.toFixed(2)} (CKA).`;
    grid.setAttribute("aria-label", `Distance of each of ${S} student layers from each of ${T} teacher layers. ${gridText.textContent}`);
  }

  // ---- drawing all

  function layout() {
    width = root.clientWidth;
    const room = width || 900;
    const dense = Math.max(...tokens.map((token) => [...token].length));
    size = clamp((room / 3.6 / n) * 0.72, 10, 13);
    gutter = Math.min(clamp(8 + dense * size * 0.62, 36, 110), room * 0.16);
    foot = gutter;
    const gaps = 3 * 14;
    side = Math.floor(clamp((room - gutter - gaps) / 3, 80, 430));
    // Labels nearer than this: one's "_" is a macron on the next, and dots below meet accents.
    every = Math.max(1, Math.ceil((1.2 * 9) / (side / n)));
    size = clamp(((side / n) * every) / 1.3, 9, size);
    root.classList.toggle("lens-narrow", side < 200); // captions then take two lines, or three with a head
    maps.style.gridTemplateColumns = `${gutter}px repeat(3, ${side}px)`;
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
    const titles = [
      `teacher, layer ${pair.t}${head(blocks.teacherHeads ? pair.th : -1)}`,
      `student, layer ${pair.s}${head(blocks.studentHeads ? pair.sh : -1)}`,
      "student − teacher",
    ];
    panels.forEach((panel, i) => {
      panel.heading.textContent = titles[i];
      panel.canvas.setAttribute("aria-label", `${titles[i]}: ${n} by ${n} tokens. ${HELP}`);
      paintPanel(panel);
      drawLegend(panel);
    });
    title.textContent = finding();
    if (slider) {
      slider.value = String(pair.k);
      stepText.textContent = String(steps[pair.k]);
      slider.setAttribute("aria-valuetext", `step ${steps[pair.k]}`);
    }
    if (headSelects.teacher) headSelects.teacher.value = String(pair.th);
    if (headSelects.student) headSelects.student.value = String(pair.sh);
    root.dataset.pair = `${pair.t} ${pair.s}`;
    drawGrid();
    drawPointer();
  }

  // ---- what the reader does

  const cellAt = (panel, event) => {
    const box = panel.canvas.getBoundingClientRect();
    const [k, q] = [event.clientX - box.left, event.clientY - box.top].map((v) => Math.floor(v / (side / n)));
    const inside = k >= 0 && q >= 0 && k < n && q < n && mask[q] && mask[k];
    return inside ? [q, k] : [null, null];
  };
  panels.forEach((panel) => {
    panel.canvas.addEventListener("pointermove", (event) => point(...cellAt(panel, event)));
    panel.canvas.addEventListener("pointerleave", () => point(null, null));
    onArrows(panel.canvas, (dx, dy) => {
      const first = mask.indexOf(1), last = mask.lastIndexOf(1);
      if (first < 0) return;
      const { q, k } = pointer ?? { q: null, k: null };
      const step = (i, d) => {
        let j = i === null ? first : i + d;
        while (j > first && j < last && !mask[j]) j += d || 1;
        return clamp(j, first, last);
      };
      point(step(q, dy), step(k, dx));
    });
  });
  sentence.addEventListener("pointerleave", () => point(null, null));

  grid.addEventListener("click", (event) => {
    const box = grid.getBoundingClientRect();
    const t = Math.floor((event.clientX - box.left - cells.left) / cells.w);
    const s = Math.floor((event.clientY - box.top - cells.top) / cells.h);
    if (t >= 0 && t < T && s >= 0 && s < S) set({ teacher_layer: t, student_layer: s });
  });
  onArrows(grid, (dx, dy) => set({
    teacher_layer: clamp(pair.t + dx, 0, T - 1), student_layer: clamp(pair.s + dy, 0, S - 1),
  }));

  const chosen = ["teacher_layer", "student_layer", "step", "teacher_head", "student_head"];
  let waiting = false; // several changes in one turn are drawn once
  const changed = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; drawPair(); });
  };
  chosen.forEach((name) => model.on(`change:${name}`, changed));

  // In the next frame: a change of theme may swap style sheets, and in between the page is narrow.
  const themes = new MutationObserver(() => requestAnimationFrame(drawAll));
  themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "theme"] });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", drawAll);
  const sizes = new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) drawAll();
  });
  drawAll();
  sizes.observe(root);
  metricSelect.value = "0";
  requestAnimationFrame(() => setTimeout(() => { // after the first paint
    root.dataset.painted = String(Math.round(performance.now() - begun));
  }));

  return () => {
    themes.disconnect();
    sizes.disconnect();
    scheme.removeEventListener("change", drawAll);
    chosen.forEach((name) => model.off(`change:${name}`, changed));
  };
}

export default { render };
