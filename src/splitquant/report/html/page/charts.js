// What all charts have in common: colours of the theme, size of their place, a note at the pointer.
const CHARTS = new Set();
const COLOURS = 8;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (number) => css(`--c${number % COLOURS}`);
const FONT = '12px system-ui, sans-serif';

function axis(more) {
  return {
    stroke: () => css('--soft'),
    font: FONT,
    labelFont: FONT,
    grid: { stroke: () => css('--line'), width: 1 },
    ticks: { stroke: () => css('--line'), width: 1, size: 4 },
    ...more,
  };
}

// Draw a chart into a place. note(u): what the pointer is on, as lines of text, or null.
function chart(host, { height, label, note, hooks = {}, ...options }, data) {
  drop(host);
  host.setAttribute('role', 'img');
  host.setAttribute('aria-label', label);
  const bubble = make('div', { class: 'bubble', hidden: true });
  const follow = (u) => {
    const { left, top } = u.cursor;
    const lines = left >= 0 ? note(u) : null;
    bubble.hidden = !lines;
    if (!lines) return;
    bubble.replaceChildren(...lines.map((line, i) => make(i ? 'div' : 'b', null, line)));
    const right = left > u.over.clientWidth / 2;
    bubble.style.left = right ? '' : `${left + 12}px`;
    bubble.style.right = right ? `${u.over.clientWidth - left + 12}px` : '';
    bubble.style.top = `${Math.max(0, Math.min(top - 12, u.over.clientHeight - bubble.offsetHeight))}px`;
  };
  const size = () => ({ width: Math.max(200, Math.floor(host.clientWidth)), height });
  const plot = new uPlot({
    ...size(),
    legend: { show: false },
    padding: [8, 16, 0, 0],
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
    ...options,
    hooks: { ...hooks, setCursor: [follow] },
  }, data, host);
  plot.over.append(bubble);
  const watch = new ResizeObserver(() => { if (host.clientWidth && !printing) plot.setSize(size()); });
  watch.observe(host);
  const entry = { host, plot, size, end: () => { watch.disconnect(); plot.destroy(); } };
  CHARTS.add(entry);
  return plot;
}

function drop(host) {
  for (const entry of CHARTS) if (entry.host === host) { entry.end(); CHARTS.delete(entry); }
  host.replaceChildren();
}

const redraw = () => { for (const { plot } of CHARTS) plot.redraw(false, true); };

let printing = false;
function print(begins) {
  printing = begins;
  document.documentElement.classList.toggle('printing', begins);
  for (const { plot, size } of CHARTS) {
    const { width, height } = size();
    plot.setSize({ width: begins ? Math.min(width, 640) : width, height });
  }
}
addEventListener('beforeprint', () => print(true));
addEventListener('afterprint', () => print(false));

const powersOfTen = (most) => Array.from({ length: Math.max(2, Math.floor(Math.log10(most)) + 1) }, (_, i) => 10 ** i);

// A histogram. drawn: {bars, parts, levels, log, unit}; parts colour its bars by cluster, levels are ticks on its floor.
function histogram(host, label, drawn) {
  const { start, width, counts } = drawn.bars;
  const total = counts.reduce((a, b) => a + b, 0);
  const edges = Array.from({ length: counts.length + 1 }, (_, i) => start + i * width);
  const parts = drawn.parts || [];
  const borders = parts.slice(1).map((part, i) => (parts[i][1] + part[0]) / 2);
  const stretches = parts.length
    ? parts.map((part, i) => [i ? borders[i - 1] : -Infinity, i < borders.length ? borders[i] : Infinity, part[2]])
    : [[-Infinity, Infinity, drawn.colour || 0]];
  const storeys = drawn.levels && !parts.length ? drawn.levels.length : 1; // ticks of clusters that overlap stand below one another
  const room = drawn.levels ? 5 + (storeys > 1 ? 6 * storeys : 12) : 5;
  const clusterAt = (x) => stretches.find(([low, high]) => x >= low && x < high)[2];

  function paint(u) {
    const { ctx, bbox } = u;
    const x = (value) => u.valToPos(value, 'x', true);
    const pixel = devicePixelRatio;
    const floor = bbox.top + bbox.height;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const gap = x(start + width) - x(start) > 5 * pixel ? pixel : 0;
    counts.forEach((count, i) => {
      if (!count) return;
      const top = Math.max(bbox.top, u.valToPos(count, 'y', true));
      for (const [low, high, cluster] of stretches) {
        const from = Math.max(edges[i], low);
        const to = Math.min(edges[i + 1], high);
        if (from >= to) continue;
        ctx.fillStyle = colour(cluster);
        const left = x(from);
        ctx.fillRect(left, top, Math.max(pixel, x(to) - left - (to === edges[i + 1] ? gap : 0)), floor - top);
      }
    });
    ctx.strokeStyle = css('--text');
    ctx.lineWidth = pixel;
    ctx.setLineDash([4 * pixel, 4 * pixel]);
    for (const border of borders) {
      ctx.beginPath();
      ctx.moveTo(x(border), bbox.top);
      ctx.lineTo(x(border), floor);
      ctx.stroke();
    }
    ctx.setLineDash([]);
    ctx.restore();
    const rows = drawn.levels || [];
    const high = (storeys > 1 ? 6 : 12) * pixel;
    rows.forEach((row, cluster) => {
      ctx.fillStyle = colour(parts.length || rows.length > 1 ? cluster : drawn.colour || 0);
      const top = floor + 3 * pixel + (storeys > 1 ? cluster * high : 0);
      for (const level of row) {
        const at = Math.round(x(level));
        if (at >= bbox.left && at <= bbox.left + bbox.width) ctx.fillRect(at - pixel / 2, top, (storeys > 1 ? 2 : 1) * pixel, high - pixel);
      }
    });
  }

  chart(host, {
    height: host.clientHeight || 240,
    label,
    scales: {
      x: { time: false, range: (u, low, high) => [low, high] },
      y: drawn.log ? { distr: 3, range: (u, low, high) => [0.5, high * 2] } : { range: (u, low, high) => [0, high * 1.06] },
    },
    axes: [
      axis({ gap: room, size: room + 23, values: (u, ticks) => ticks.map(digits), label: drawn.unit, labelSize: 18, labelGap: 0, space: 64 }),
      axis({ size: 52, ...(drawn.log ? { splits: () => powersOfTen(Math.max(...counts)) } : {}), values: (u, ticks) => ticks.map((n) => (n === null ? '' : n >= 1e6 ? `${n / 1e6}M` : n >= 1e3 ? `${n / 1e3}k` : `${n}`)) }),
    ],
    series: [{}, { paths: () => null, points: { show: false } }],
    hooks: { draw: [paint] },
    note(u) {
      const at = u.posToVal(u.cursor.left, 'x');
      const i = Math.floor((at - start) / width);
      if (!(i >= 0 && i < counts.length)) return null;
      const lines = [`${grouped(counts[i])} weights (${percent(counts[i] / total)})`, `${digits(edges[i])} to ${digits(edges[i + 1])}`];
      return parts.length > 1 ? [...lines, `cluster ${clusterAt(at)}`] : lines;
    },
  }, [edges, [...counts.map((n) => (n || !drawn.log ? n : null)), null]]);
}
