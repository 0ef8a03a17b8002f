// Figures and how they are written.
const SPECS = DATA.specs;
const specOf = (tensor) => SPECS[tensor.t];
const kindOf = (tensor) => DATA.kinds[tensor.k];

function shownBytes(bytes) {
  let value = bytes;
  for (const unit of ['B', 'kB', 'MB']) {
    if (Number(value.toFixed(1)) < 1000) return `${value.toFixed(unit === 'B' ? 0 : 1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(2)} GB`;
}

const grouped = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, '\u2009');
const percent = (x) => (x >= 0.1 ? `${(100 * x).toFixed(0)} %` : x >= 0.001 ? `${(100 * x).toFixed(1)} %` : x > 0 ? '< 0.1 %' : '0 %');
const digits = (x) => (x === 0 ? '0' : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? Number(x.toPrecision(3)).toExponential() : String(Number(x.toPrecision(3)))).replaceAll('-', '\u2212');

// Signal and noise of some tensors together; null where none was quantized. Energies add.
function energy(tensors) {
  const some = tensors.filter((tensor) => tensor.f);
  if (!some.length) return null;
  return { signal: some.reduce((sum, t) => sum + t.f[0], 0), noise: some.reduce((sum, t) => sum + t.f[1], 0) };
}

const decibels = (e) => (e === null ? null : e.noise === 0 ? Infinity : e.signal > 0 ? 10 * Math.log10(e.signal / e.noise) : -Infinity);
const shownDecibels = (db, places = 2) =>
  (db === null ? '' : db === Infinity ? 'exact' : db === -Infinity ? 'no signal' : `${db.toFixed(places).replace('-', '\u2212')} dB`);
const bitsOf = (tensors) => {
  const own = tensors.filter((tensor) => tensor.b);
  const weights = own.reduce((sum, t) => sum + t.weights, 0);
  return (8 * own.reduce((sum, t) => sum + t.a, 0)) / Math.max(1, weights);
};

const TOTAL = energy(TENSORS);
for (const tensor of TENSORS) {
  tensor.sqnr = decibels(energy([tensor]));
  tensor.bits = (8 * tensor.a) / Math.max(1, tensor.weights);
  tensor.share = tensor.f && TOTAL.noise > 0 ? tensor.f[1] / TOTAL.noise : 0;
}

// Things by a key, in the order in which the keys come.
function groupedBy(things, key) {
  const groups = new Map();
  for (const thing of things) {
    const name = key(thing);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(thing);
  }
  return groups;
}
