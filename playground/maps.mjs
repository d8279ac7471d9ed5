// What lens.js draws, from two models' maps: the header and bytes of comet_lib/lens/data.py.

const sum = (values) => values.reduce((a, b) => a + b, 0);
const entropy = (values) => sum(values.map((p) => (p > 0 ? -p * Math.log(p) : 0)));
const argmax = (values) => values.indexOf(Math.max(...values));

/** A label that cannot disturb its surroundings, as in comet_lib/lens/align.py. */
export function shown(token) {
  const safe = token.replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu,
    (sign) => `\u2039${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u203a`);
  const signs = [...safe];
  return signs.length > 24 ? `${signs.slice(0, 24).join("")}\u2026` : safe;
}

/** Centered Gram matrix of a map's rows. <K, L> / (|K| |L|) is linear CKA (Kornblith et al. 2019, eq. 4). */
function gram(map, n) {
  const columns = Array.from({ length: n }, (_, k) => sum(Array.from({ length: n }, (_, q) => map[q * n + k])) / n);
  const x = map.map((value, i) => value - columns[i % n]);
  const k = new Float64Array(n * n);
  for (let a = 0; a < n; a++) {
    for (let b = 0; b <= a; b++) {
      let dot = 0;
      for (let c = 0; c < n; c++) dot += x[a * n + c] * x[b * n + c];
      k[a * n + b] = k[b * n + a] = dot;
    }
  }
  return k;
}

const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);

/** Numbers of one shape as bytes: p = scale (code / 255)^2. */
function coded(maps) {
  const codes = maps.map((map) => {
    const scale = Math.max(...map);
    return { scale, bytes: Uint8Array.from(map, (p) => Math.round(255 * Math.sqrt(p / scale))) };
  });
  return { scale: codes.map((one) => one.scale), codes: codes.map((one) => one.bytes) };
}

/**
 * The teacher's T layers and the student's S layers at each of K steps, as engine.mjs gives them, and the steps'
 * names -> { header, maps, start }; `start` is the matched pair that differs most at the last step.
 */
export function lensData(tokens, teacherLayers, course, steps = []) {
  const n = tokens.length, [K, T, S] = [course.length, teacherLayers.length, course[0].length];
  const all = course.flat();
  const blocks = {}, bytes = [];
  const add = (name, shape, maps) => {
    const { scale, codes } = coded(maps);
    blocks[name] = { shape: [...shape, n, n], offset: bytes.length * n * n, scale };
    bytes.push(...codes);
  };
  add("teacher", [T], teacherLayers.map((one) => one.mean));
  add("student", [K, S], all.map((one) => one.mean));
  add("teacherHeads", [T, teacherLayers[0].heads.length], teacherLayers.flatMap((one) => one.heads));
  add("studentHeads", [K, S, all[0].heads.length], all.flatMap((one) => one.heads));
  const maps = new Uint8Array(bytes.length * n * n);
  bytes.forEach((one, i) => maps.set(one, i * n * n));

  const measured = (layers) => layers.map(({ mean }) => ({ map: mean, h: entropy(mean), gram: gram(mean, n) }));
  const teacher = measured(teacherLayers), students = course.map(measured);
  const table = (of) => students.map((student) => student.map((s) => teacher.map((t) => of(s, t))));
  const js = table((s, t) => Math.max(0, (entropy(s.map.map((p, i) => (p + t.map[i]) / 2)) - (s.h + t.h) / 2) / n));
  const matches = course[0].map((_, s) => Math.floor(((s + 1) * T) / S) - 1);
  const widest = argmax(matches.map((t, s) => js[K - 1][s][t]));
  return {
    header: {
      tokens: tokens.map(shown),
      mask: tokens.map(() => 1),
      matches,
      steps,
      js,
      cka: table((s, t) => dot(s.gram, t.gram) / Math.max(Math.sqrt(dot(s.gram, s.gram) * dot(t.gram, t.gram)), 1e-300)),
      teacherEntropy: teacher.map((one) => one.h / n),
      studentEntropy: students.map((student) => student.map((one) => one.h / n)),
      headsLeftOut: false,
      blocks,
    },
    maps,
    start: { teacher_layer: matches[widest], student_layer: widest },
  };
}
