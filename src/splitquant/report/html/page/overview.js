// The parts of the page that show the model as a whole.
function card(title, value, ...says) {
  return make('div', { class: 'card' }, make('p', { class: 'overline' }, title), make('p', { class: 'value' }, value), ...says);
}

function drawCards() {
  const before = TENSORS.reduce((sum, t) => sum + t.b, 0);
  const after = TENSORS.reduce((sum, t) => sum + t.a, 0);
  const changed = TENSORS.filter((t) => !t.kept);
  const kept = TENSORS.length - changed.length;
  const says = (text) => make('p', { class: 'soft' }, text);
  const meter = (share) => make('div', { class: 'meter', '--share': `${(100 * share).toFixed(2)}%` });
  const worst = TENSORS.reduce((most, t) => (t.share > (most ? most.share : 0) ? t : most), null);
  byId('cards').append(
    card('Size of the weights', shownBytes(after), says(`of ${shownBytes(before)}: ${(before / Math.max(1, after)).toFixed(2)}× smaller`), meter(after / Math.max(1, before))),
    card('Bits per weight', bitsOf(TENSORS).toFixed(2), says(changed.length ? `${bitsOf(changed).toFixed(2)} where quantized` : 'nothing was quantized')),
    card('SQNR', TOTAL ? shownDecibels(decibels(TOTAL)) : '\u2013', says(TOTAL ? `relative error ${percent(Math.sqrt(TOTAL.noise / (TOTAL.signal || 1)))}` : 'not known')),
    card('Tensors quantized', `${changed.length}`, says(`of ${TENSORS.length}; ${kept} kept as they were`), meter(changed.length / Math.max(1, TENSORS.length))),
  );
  if (worst) {
    const open = make('button', { type: 'button', class: 'link', onclick: () => choose(worst.index, { reveal: true }) }, ...breakable(worst.n));
    byId('cards').append(card('Most of the error', percent(worst.share), make('p', { class: 'soft' }, open)));
  }
}

function drawGroups() {
  const table = byId('groups');
  const head = ['Tensors', 'Number', 'Weights', 'Before', 'After', 'Bits/weight', 'SQNR'];
  table.append(make('thead', null, make('tr', null, ...head.map((text, i) => make('th', { scope: 'col', class: i ? (i < 4 ? 'number wide' : 'number') : null }, text)))));
  const body = make('tbody');
  const most = Math.max(1, DATA.groups.reduce((sum, row) => sum + row[3], 0));
  const strips = [make('div'), make('div')];
  DATA.groups.forEach(([what, number, weights, before, after, sqnr], i) => {
    const paint = what.startsWith('kept') ? 'var(--kept)' : `var(--c${i % COLOURS})`;
    [before, after].forEach((bytes, side) => {
      if (bytes) strips[side].append(make('i', { '--share': `${(100 * bytes / most).toFixed(3)}%`, '--paint': paint }));
    });
    const cells = [String(number), grouped(weights), shownBytes(before), shownBytes(after), ((8 * after) / Math.max(1, weights)).toFixed(2), shownDecibels(sqnr)];
    body.append(make('tr', null, make('th', { scope: 'row' }, make('i', { class: 'swatch', '--paint': paint }), shown(what)), ...cells.map((text, j) => make('td', { class: j < 3 ? 'number wide' : 'number' }, text))));
  });
  table.append(body);
  byId('storage').append(...strips.map((strip, side) => make('div', { class: 'strip' }, make('span', null, side ? 'after' : 'before'), strip)));
}

function drawKinds() {
  const rows = [...groupedBy(TENSORS.filter((t) => t.f), (t) => t.k)].map(([k, some]) => ({ name: DATA.kinds[k], some, db: decibels(energy(some)) }));
  rows.sort((a, b) => a.db - b.db);
  const most = Math.max(1, ...rows.map((row) => row.db).filter(Number.isFinite));
  const host = byId('kinds');
  for (const { name, some, db } of rows) {
    const share = Number.isFinite(db) ? Math.max(0, db / most) : db > 0 ? 1 : 0;
    host.append(make('button', { type: 'button', class: 'kind', title: 'Show these tensors', onclick: () => showKind(name) },
      make('span', { class: 'name' }, ...(name ? breakable(name) : ['(no name)'])),
      make('span', { class: 'soft' }, `${some.length} tensor${some.length > 1 ? 's' : ''}, ${bitsOf(some).toFixed(2)} bits`),
      make('span', { class: 'track' }, make('i', { '--share': `${(100 * share).toFixed(2)}%` })),
      make('span', { class: 'number' }, shownDecibels(db, 1))));
  }
  if (!rows.length) host.append(make('p', { class: 'soft' }, 'No error figures are known of this model.'));
}

function drawDepth() {
  const host = byId('depth');
  const placed = TENSORS.filter((t) => t.f && t.l !== undefined && Number.isFinite(t.sqnr));
  const blocks = DATA.blocks.length > 1;
  const some = blocks ? placed : TENSORS.filter((t) => t.f && Number.isFinite(t.sqnr));
  if (!some.length) {
    byId('depth-says').textContent = 'No error figures are known of this model.';
    return;
  }
  byId('depth-says').textContent = blocks
    ? 'SQNR of the weights in each block of the model; higher is better. Choose a point to see its tensor.'
    : 'SQNR of each tensor in the order of the model; higher is better. Choose a point to see it.';
  const xs = blocks ? DATA.blocks.map((_, i) => i) : some.map((_, i) => i);
  const names = blocks ? DATA.blocks : some.map((t) => t.n);
  const kinds = blocks ? [...groupedBy(some, (t) => t.k)] : [['', some]];
  const lines = kinds.map(([k, members], number) => {
    const at = blocks ? groupedBy(members, (t) => t.l) : new Map(some.map((t, i) => [i, [t]]));
    return { name: blocks ? DATA.kinds[k] : 'SQNR', number, at, ys: xs.map((x) => (at.has(x) ? decibels(energy(at.get(x))) : null)) };
  });
  const near = (u) => {
    const x = u.cursor.idx;
    if (x === null || x === undefined) return null;
    let best = null;
    lines.forEach((line, i) => {
      if (!u.series[i + 1].show || line.ys[x] === null) return;
      const away = Math.abs(u.valToPos(line.ys[x], 'y') - u.cursor.top);
      if (!best || away < best.away) best = { away, line, x };
    });
    return best;
  };
  const plot = chart(host, {
    height: host.clientHeight || 320,
    label: `SQNR along the depth, ${lines.length} kinds of layers in ${xs.length} places; the table of tensors has the same figures`,
    scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low - 0.3, high + 0.3]) } },
    axes: [
      axis({ size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], label: blocks ? 'block' : 'tensor', labelSize: 18, labelGap: 0 }),
      axis({ size: 46, values: (u, ticks) => ticks.map((n) => String(n).replace('-', '\u2212')), label: 'dB', labelSize: 16, labelGap: 0 }),
    ],
    series: [{}, ...lines.map(({ number }) => ({
      stroke: () => colour(number),
      width: 2,
      dash: number >= COLOURS ? [6, 4] : undefined,
      spanGaps: true,
      points: { show: xs.length < 120, size: 7, fill: () => colour(number), stroke: () => colour(number) },
    }))],
    note(u) {
      const best = near(u);
      if (!best) return null;
      const db = best.line.ys[best.x];
      return [shownDecibels(db), shown(names[best.x]), ...(blocks ? [shown(best.line.name)] : [])];
    },
  }, [xs, ...lines.map((line) => line.ys)]);
  let pressed = null;
  plot.over.addEventListener('mousedown', (event) => { pressed = [event.clientX, event.clientY]; });
  plot.over.addEventListener('click', (event) => {
    if (pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;
    const best = near(plot);
    if (best) choose(best.line.at.get(best.x)[0].index, { reveal: true });
  });
  if (lines.length > 1) {
    byId('depth-legend').append(...lines.map(({ name, number }, i) => make('button', {
      type: 'button', 'aria-pressed': 'true', '--paint': `var(--c${number % COLOURS})`,
      onclick(event) {
        const show = event.currentTarget.getAttribute('aria-pressed') !== 'true';
        event.currentTarget.setAttribute('aria-pressed', String(show));
        plot.setSeries(i + 1, { show });
      },
    }, make('i', { class: 'swatch' }), shown(name))));
  }
}

function drawFrontier() {
  const points = DATA.frontier.filter((point) => point.sqnr !== null);
  if (points.length < 2) return;
  byId('frontier-panel').hidden = false;
  const chosen = points.find((point) => point.chosen);
  byId('frontier-says').textContent = 'The best SQNR that is possible at each size, and '
    + (chosen ? `the plan that was chosen: ${shownBytes(chosen.bytes)}, ${chosen.bits.toFixed(2)} bits per weight, ${shownDecibels(chosen.sqnr)}.` : 'no plan of these was chosen.');
  chart(byId('frontier'), {
    height: byId('frontier').clientHeight || 260,
    label: `The frontier: ${points.length} sizes from ${shownBytes(points[0].bytes)} to ${shownBytes(points.at(-1).bytes)}`,
    scales: { x: { time: false } },
    axes: [
      axis({ size: 28, label: 'stored bits per weight', labelSize: 18, labelGap: 0 }),
      axis({ size: 46, label: 'dB', labelSize: 16, labelGap: 0 }),
    ],
    series: [{},
      { stroke: () => colour(0), width: 2, points: { show: true, size: 7, fill: () => colour(0) } },
      { stroke: () => colour(1), points: { show: true, size: 16, fill: () => colour(1) }, paths: () => null }],
    note(u) {
      const point = points[u.cursor.idx];
      return point ? [shownBytes(point.bytes) + (point.chosen ? ', chosen' : ''), `${point.bits.toFixed(2)} bits per weight`, shownDecibels(point.sqnr)] : null;
    },
  }, [points.map((p) => p.bits), points.map((p) => p.sqnr), points.map((p) => (p.chosen ? p.sqnr : null))]);
}

function drawTables() {
  for (const { title, columns, rows } of DATA.tables) {
    const numeric = columns.map((_, i) => rows.some((row) => typeof row[i] === 'number'));
    const cell = (value) => (value === null ? '' : typeof value === 'number' ? digits(value) : shown(value));
    byId('tables').append(make('section', { class: 'panel' }, make('h2', null, shown(title)), make('div', { class: 'scroll' }, make('table', null,
      make('thead', null, make('tr', null, ...columns.map((text, i) => make('th', { scope: 'col', class: numeric[i] ? 'number' : null }, shown(text))))),
      make('tbody', null, ...rows.map((row) => make('tr', null, ...row.map((value, i) => make('td', { class: numeric[i] ? 'number' : null }, cell(value))))))))));
  }
  if (DATA.notes.length) {
    byId('notes').hidden = false;
    byId('notes').querySelector('ul').append(...DATA.notes.map((note) => make('li', null, shown(note))));
  }
}
