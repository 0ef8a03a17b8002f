// The data of the page, and the few helpers that everything else is built of. Names are text: nothing here makes markup of them.
const DATA = JSON.parse(document.getElementById('data').textContent);
const TENSORS = DATA.tensors.map((tensor, index) => ({ ...tensor, index, weights: tensor.s.reduce((a, b) => a * b, 1) }));
const byId = (id) => document.getElementById(id);

// What a name shows of control characters and of marks that turn the direction of text.
const shown = (name) =>
  name.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu, (c) =>
    c.codePointAt(0) > 0xffff ? c : `\\u${c.codePointAt(0).toString(16).padStart(4, '0')}`);

// A name with places where a line may end: after dots, slashes and underscores.
const breakable = (name) => shown(name).split(/(?<=[._/])/).flatMap((piece, i) => (i ? [document.createElement('wbr'), piece] : [piece]));

// An element with properties and children; texts become text nodes.
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key.startsWith('--')) element.style.setProperty(key, value);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A histogram: where its bins begin, how wide they are, and how many values each holds (about: five digits of it).
function bars([first, exponent, packed]) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const logs = new DataView(bytes.buffer);
  const width = 2 ** exponent;
  const counts = Array.from({ length: bytes.length / 2 }, (_, i) => Math.round(2 ** (logs.getUint16(2 * i, true) / 1024) - 1));
  return { start: first * width, width, counts };
}

const levelsOf = (row) => row.at || Array.from({ length: row.n }, (_, i) => row.from + i * row.step);

const remembered = {
  get(key) {
    try { return localStorage.getItem(`splitquant-${key}`); } catch { return null; }
  },
  set(key, value) {
    try { localStorage.setItem(`splitquant-${key}`, value); } catch { /* a file may have no storage */ }
  },
};
