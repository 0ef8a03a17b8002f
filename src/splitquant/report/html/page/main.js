// Put the page together; the theme.
const THEMES = ['auto', 'light', 'dark'];

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = byId('theme');
  button.textContent = { auto: 'Auto', light: 'Light', dark: 'Dark' }[theme];
  button.setAttribute('aria-label', `Colours: ${{ auto: 'automatic', light: 'light', dark: 'dark' }[theme]}`);
  button.dataset.theme = theme;
  redraw();
}

byId('theme').addEventListener('click', () => {
  const theme = THEMES[(THEMES.indexOf(byId('theme').dataset.theme) + 1) % THEMES.length];
  remembered.set('theme', theme);
  setTheme(theme);
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

byId('title').textContent = shown(DATA.destination);
byId('from').textContent = `made from ${shown(DATA.source)}`;
byId('version').textContent = DATA.version;
setTheme(THEMES.includes(remembered.get('theme')) ? remembered.get('theme') : 'auto');
drawCards();
drawGroups();
drawKinds();
drawDepth();
drawFrontier();
drawTables();
buildTable();
const first = TENSORS.reduce((most, t) => (most === null || t.share > most.share ? t : most), null);
if (first) choose(first.index);
