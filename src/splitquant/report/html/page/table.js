// The table of all tensors: order, filter, and which of them is chosen.
const ROWS_AT_ONCE = 200; // more come as one scrolls: a browser lays out thousands of rows in half a second
const COLUMNS = [
  { key: 'name', title: 'Tensor', of: (t) => t.n, text: true },
  { key: 'spec', title: 'Stored as', of: specOf, text: true },
  { key: 'shape', title: 'Shape', of: (t) => t.weights },
  { key: 'bits', title: 'Bits/weight', of: (t) => t.bits, number: true },
  { key: 'size', title: 'Size', of: (t) => t.a, number: true },
  { key: 'sqnr', title: 'SQNR', of: (t) => t.sqnr, number: true },
  { key: 'share', title: 'Share of error', of: (t) => (t.f ? t.share : null), number: true },
];
const view = { key: null, down: false, words: [], which: '', kind: null, chosen: -1, visible: [], laid: 0, marked: [] };
const ROWS = [];
const compare = new Intl.Collator('en', { numeric: true }).compare;

function rowOf(tensor) {
  if (ROWS[tensor.index]) return ROWS[tensor.index];
  const pick = make('button', { type: 'button', tabindex: '-1', 'data-at': tensor.index }, ...breakable(tensor.n));
  const top = Math.max(1, view.best || 1);
  const bar = (share, paint) => ({ class: 'number barred', '--share': `${(100 * Math.max(0, Math.min(1, share))).toFixed(1)}%`, '--paint': paint });
  const row = make('tr', { class: tensor.kept ? 'kept' : null },
    make('th', { scope: 'row' }, pick, make('small', null, shown(specOf(tensor)))),
    make('td', { class: 'spec' }, shown(specOf(tensor))),
    make('td', { class: 'shape' }, `${tensor.s.join('\u2009×\u2009') || 'one number'} ${tensor.d}`),
    make('td', { class: 'number bits' }, tensor.bits.toFixed(2)),
    make('td', { class: 'number' }, shownBytes(tensor.a)),
    make('td', tensor.f ? bar(Number.isFinite(tensor.sqnr) ? tensor.sqnr / top : 1, 'var(--good)') : { class: 'number' }, shownDecibels(tensor.sqnr)),
    make('td', { ...(tensor.f ? bar(tensor.share / (view.mostShare || 1), 'var(--bad)') : { class: 'number' }) }, tensor.f ? percent(tensor.share) : ''));
  row.lastElementChild.classList.add('share');
  ROWS[tensor.index] = row;
  return row;
}

const known = (tensor, column) => column.of(tensor) !== null && column.of(tensor) !== undefined;

function refresh() {
  const column = COLUMNS.find((one) => one.key === view.key);
  const found = TENSORS.filter((t) =>
    (view.which === '' || (view.which === 'quantized' && !t.kept) || (view.which === 'kept' && t.kept) || view.which === `=${t.t}`)
    && (view.kind === null || kindOf(t) === view.kind)
    && view.words.every((word) => `${t.n} ${specOf(t)} ${t.d}`.toLowerCase().includes(word)));
  if (column) {
    const sign = view.down ? -1 : 1;
    found.sort((a, b) => {
      const missing = known(b, column) - known(a, column); // what has no figure comes last, either way
      if (missing || !known(a, column)) return missing || a.index - b.index;
      const [x, y] = [column.of(a), column.of(b)];
      return sign * (column.text ? compare(x, y) : x === y ? 0 : x < y ? -1 : 1) || a.index - b.index;
    });
  }
  view.visible = found;
  byId('tensors').tBodies[0].replaceChildren();
  view.laid = 0;
  layRows(ROWS_AT_ONCE);
  byId('count').textContent = found.length === TENSORS.length ? `${TENSORS.length} tensors` : `${found.length} of ${TENSORS.length} tensors`;
  for (const th of byId('tensors').tHead.rows[0].cells) {
    th.setAttribute('aria-sort', th.dataset.key === view.key ? (view.down ? 'descending' : 'ascending') : 'none');
  }
  byId('order').value = view.key === null ? '' : `${view.key}${view.down ? '-' : '+'}`;
  mark();
}

// Lay out rows until there are so many of them.
function layRows(many) {
  const until = Math.min(many, view.visible.length);
  if (until <= view.laid) return;
  byId('tensors').tBodies[0].append(...view.visible.slice(view.laid, until).map(rowOf));
  view.laid = until;
}

function sortBy(key, down) {
  Object.assign(view, { key, down });
  refresh();
  byId('rows').scrollTop = 0;
}

// Show which row is chosen; it, or the first row, is where the tab key enters the table.
function mark() {
  for (const row of view.marked) {
    row.classList.remove('chosen');
    row.querySelector('button').tabIndex = -1;
    row.querySelector('button').removeAttribute('aria-current');
  }
  const row = ROWS[view.chosen];
  const here = row && row.isConnected ? row : null;
  if (here) {
    here.classList.add('chosen');
    here.querySelector('button').setAttribute('aria-current', 'true');
  }
  const entry = here || byId('tensors').tBodies[0].rows[0];
  if (entry) entry.querySelector('button').tabIndex = 0;
  view.marked = entry ? [entry] : [];
}

// Choose a tensor. reveal: clear filters that hide it and bring it and its pictures into sight.
function choose(index, { reveal = false, focus = false } = {}) {
  view.chosen = index;
  if (reveal && !view.visible.some((t) => t.index === index)) {
    Object.assign(view, { words: [], which: '', kind: null });
    byId('filter').value = '';
    byId('which').value = '';
    refresh();
  }
  if (reveal || focus) layRows(view.visible.findIndex((t) => t.index === index) + ROWS_AT_ONCE / 2);
  mark();
  drawTensor(TENSORS[index]);
  const row = ROWS[index];
  if (row && row.isConnected) {
    if (reveal || focus) {
      const box = byId('rows');
      const under = row.offsetTop - byId('tensors').tHead.offsetHeight;
      if (under < box.scrollTop) box.scrollTop = under;
      else if (row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = row.offsetTop + row.offsetHeight - box.clientHeight;
    }
    if (focus) row.querySelector('button').focus({ preventScroll: true });
  }
  if (reveal) byId(matchMedia('(max-width: 1100px)').matches ? 'detail' : 'work').scrollIntoView({ block: 'start', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
}

function step(by, focus) {
  const rows = view.visible;
  if (!rows.length) return;
  const at = rows.findIndex((t) => t.index === view.chosen);
  const next = rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + by))];
  choose(next.index, { focus });
}

function showKind(name) {
  Object.assign(view, { kind: view.kind === name ? null : name, words: [], which: '' });
  byId('filter').value = view.kind === null ? '' : `kind:${view.kind}`;
  byId('which').value = '';
  refresh();
  if (view.visible.length) choose(view.visible[0].index, { reveal: true });
}

function buildTable() {
  view.best = Math.max(1, ...TENSORS.map((t) => t.sqnr).filter((db) => db !== null && Number.isFinite(db)));
  view.mostShare = TENSORS.reduce((most, t) => Math.max(most, t.share), 0);
  byId('tensors').tHead.append(make('tr', null, ...COLUMNS.map(({ key, title, number }) => make('th', { scope: 'col', 'data-key': key, class: `${number ? 'number' : ''} ${key}`.trim() },
    make('button', { type: 'button', onclick: () => {
      if (view.key !== key) sortBy(key, Boolean(number) && key !== 'sqnr');
      else if (view.down === (Boolean(number) && key !== 'sqnr')) sortBy(key, !view.down);
      else sortBy(null, false); // the third time: the order of the model
    } }, title)))));
  byId('order').append(make('option', { value: '' }, 'Order of the model'), ...COLUMNS.flatMap(({ key, title }) =>
    [make('option', { value: `${key}+` }, `${title} \u2191`), make('option', { value: `${key}-` }, `${title} \u2193`)]));
  byId('order').addEventListener('change', ({ target }) => (target.value ? sortBy(target.value.slice(0, -1), target.value.endsWith('-')) : sortBy(null, false)));
  const number = groupedBy(TENSORS, (t) => t.t);
  const kept = TENSORS.filter((t) => t.kept).length;
  byId('which').append(
    make('option', { value: '' }, `All (${TENSORS.length})`), make('option', { value: 'quantized' }, `Quantized (${TENSORS.length - kept})`), make('option', { value: 'kept' }, `Kept (${kept})`),
    ...SPECS.map((spec, i) => make('option', { value: `=${i}` }, `${shown(spec)} (${number.get(i).length})`)));
  byId('which').addEventListener('change', ({ target }) => { view.which = target.value; refresh(); });
  byId('filter').addEventListener('input', ({ target }) => {
    Object.assign(view, { words: target.value.toLowerCase().split(/\s+/).filter(Boolean), kind: null });
    refresh();
  });
  byId('filter').addEventListener('keydown', (event) => {
    if (event.key === 'Escape') { event.target.value = ''; Object.assign(view, { words: [], kind: null }); refresh(); }
    if (event.key === 'ArrowDown' || event.key === 'Enter') { event.preventDefault(); if (view.visible.length) choose(view.visible[0].index, { focus: true }); }
  });
  byId('tensors').tBodies[0].addEventListener('click', (event) => {
    const row = event.target.closest('tr');
    if (row) choose(Number(row.querySelector('button').dataset.at), { focus: true, reveal: matchMedia('(max-width: 1100px)').matches });
  });
  byId('rows').addEventListener('scroll', ({ target }) => {
    if (target.scrollTop + 2 * target.clientHeight > target.scrollHeight) layRows(view.laid + ROWS_AT_ONCE);
  }, { passive: true });
  addEventListener('beforeprint', () => layRows(view.visible.length));
  byId('rows').addEventListener('keydown', (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (!by || !event.target.closest('tbody')) return;
    event.preventDefault();
    step(by, true);
  });
  addEventListener('keydown', (event) => {
    if (event.key === '/' && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); byId('filter').focus(); }
  });
  refresh();
}
