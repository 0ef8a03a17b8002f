// The chosen tensor: its figures, its values with grids and borders, its errors.
const looks = { log: false, middle: false, plain: false, allErrors: false };
const AXES = {
  value: 'weight',
  scaled: 'weight over the scale of its row or group',
  code: 'code on the grid of its row or group',
};

function drawTensor(tensor) {
  const host = byId('detail');
  for (const old of host.querySelectorAll('.chart')) drop(old);
  const facts = [
    ['Stored as', shown(specOf(tensor))],
    ['Shape', `${tensor.s.join('\u2009×\u2009') || 'one number'} ${tensor.d}`],
    ['Size', tensor.b ? `${shownBytes(tensor.a)} of ${shownBytes(tensor.b)}` : 'shared with a tensor before it'],
    ['Bits per weight', tensor.bits.toFixed(2)],
    ...(tensor.f ? [
      ['SQNR', shownDecibels(tensor.sqnr)],
      ['Relative error', percent(Math.sqrt(tensor.f[1] / (tensor.f[0] || 1)))],
      ['RMS error', digits(Math.sqrt(tensor.f[1] / Math.max(1, tensor.weights)))],
      ['Largest error', digits(tensor.f[2])],
      ['Share of the error', percent(tensor.share)],
    ] : []),
    ...(tensor.x ? [['NaN or infinite', grouped(tensor.x)]] : []),
  ];
  const steps = make('div', { class: 'steps' },
    make('button', { type: 'button', class: 'quiet', 'aria-label': 'Previous tensor', onclick: () => step(-1) }, '\u2191'),
    make('button', { type: 'button', class: 'quiet', 'aria-label': 'Next tensor', onclick: () => step(1) }, '\u2193'),
    make('button', { type: 'button', class: 'quiet back', onclick: () => byId('list').scrollIntoView() }, 'List'));
  host.replaceChildren(
    make('div', { class: 'bar' }, make('h2', { class: 'name' }, ...breakable(tensor.n)), steps),
    make('dl', null, ...facts.map(([name, value]) => make('div', null, make('dt', null, name), make('dd', null, value)))));
  if (!tensor.v) {
    host.append(make('p', { class: 'soft' }, 'There are no pictures of this tensor.'));
    return;
  }
  const grid = tensor.g;
  const onGrid = grid && (!looks.plain || !grid.v);
  const all = onGrid && grid.v ? grid.v : tensor.v;
  const middle = looks.middle && all.length > 1;
  const toggle = (text, on, change) => make('button', { type: 'button', 'aria-pressed': String(on), onclick: () => { change(); drawTensor(tensor); } }, text);
  host.append(make('div', { class: 'bar' }, make('h3', null, 'Values'), make('div', { class: 'toggles' },
    grid && grid.v ? toggle('As weights', looks.plain, () => { looks.plain = !looks.plain; }) : null,
    all.length > 1 ? toggle(`Middle ${100 * DATA.middle} %`, middle, () => { looks.middle = !looks.middle; }) : null,
    toggle('Logarithmic', looks.log, () => { looks.log = !looks.log; }))));
  const values = make('div', { class: 'chart', id: 'values' });
  host.append(values, make('p', { class: 'soft' }, saysOf(tensor, onGrid)));
  histogram(values, `Histogram of the values of ${shown(tensor.n)}`, {
    bars: bars(all[middle ? 1 : 0]),
    parts: onGrid ? grid.parts : [],
    levels: onGrid ? grid.levels.map(levelsOf) : null,
    log: looks.log,
    unit: onGrid ? AXES[grid.axis] : AXES.value,
    colour: tensor.kept ? 7 : 0,
  });
  if (!tensor.e) return;
  const inner = tensor.e.length > 1 && !looks.allErrors;
  const errors = make('div', { class: 'chart short', id: 'errors' });
  host.append(make('div', { class: 'bar' }, make('h3', null, inner ? `Errors, the middle ${100 * DATA.middle} %` : 'Errors'), make('div', { class: 'toggles' },
    tensor.e.length > 1 ? toggle('All', looks.allErrors, () => { looks.allErrors = !looks.allErrors; }) : null)), errors);
  histogram(errors, `Histogram of the errors of ${shown(tensor.n)}`, {
    bars: bars(tensor.e[inner ? 1 : 0]), log: looks.log, unit: 'stored weight minus weight', colour: 2,
  });
}

function saysOf(tensor, onGrid) {
  if (!tensor.g) return tensor.kept ? 'Kept as it was: these values are stored exactly.' : 'Drag to zoom in, double-click to see all.';
  if (!onGrid) return 'The weights themselves. Levels and borders are drawn where they lie: among weights over their scale.';
  const { levels, parts, axis } = tensor.g;
  const number = levels.reduce((sum, row) => sum + (row.n || row.at.length), 0);
  const first = tensor.m ? `The first of ${tensor.m} matrices. ` : '';
  const borders = parts.length > 1 ? `${parts.length} clusters, told by colour, with borders dashed; ` : '';
  const overlap = levels.length > 1 && parts.length < 2 ? `${levels.length} clusters that overlap, since a value takes the nearest level of any; ` : '';
  const own = axis === 'code' ? ' Every row or group has its own scale and zero_point.' : '';
  const ticks = `${borders || overlap ? 'the' : 'The'} ${number} levels are the ticks below.`;
  return `${first}${borders}${overlap}${ticks}${own} Drag to zoom in, double-click to see all.`;
}
