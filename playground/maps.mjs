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

/** Centred Gram matrix of a map's rows. <K, L> / (|K| |L|) is linear CKA (Kornblith et al. 2019, eq. 4). */
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

/** Maps (n, n) of T and S layers -> { header, maps, start }; `start` is the matched pair that differs most. */
export function lensData(tokens, teacher, student) {
  const n = tokens.length, [T, S] = [teacher.length, student.length];
  const codes = new Uint8Array((T + S) * n * n);
  const block = (maps, offset, lead) => ({
    shape: [...lead, maps.length, n, n],
    offset,
    scale: maps.map((map, i) => {
      const scale = Math.max(...map);
      map.forEach((p, at) => { codes[offset + i * n * n + at] = Math.round(255 * Math.sqrt(p / scale)); });
      return scale;
    }),
  });
  const js = student.map((s) => teacher.map((t) => {
    const middle = s.map((p, i) => (p + t[i]) / 2);
    return Math.max(0, (entropy(middle) - (entropy(s) + entropy(t)) / 2) / n);
  }));
  const [teacherGrams, studentGrams] = [teacher, student].map((maps) => maps.map((map) => gram(map, n)));
  const cka = studentGrams.map((s) => teacherGrams.map((t) => dot(s, t) / Math.max(Math.sqrt(dot(s, s) * dot(t, t)), 1e-300)));
  const matches = student.map((_, s) => Math.floor(((s + 1) * T) / S) - 1);
  const widest = argmax(matches.map((t, s) => js[s][t]));
  return {
    header: {
      tokens: tokens.map(shown),
      mask: tokens.map(() => 1),
      matches,
      steps: [],
      js: [js],
      cka: [cka],
      teacherEntropy: teacher.map((map) => entropy(map) / n),
      studentEntropy: [student.map((map) => entropy(map) / n)],
      headsLeftOut: false,
      blocks: { teacher: block(teacher, 0, []), student: block(student, T * n * n, [1]) },
    },
    maps: codes,
    start: { teacher_layer: matches[widest], student_layer: widest },
  };
}
