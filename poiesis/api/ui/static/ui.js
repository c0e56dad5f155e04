// What every page has: times that stay current, and a menu that closes.

const UNITS = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];

export function ago(at, now = Date.now()) {
  const seconds = (now - at) / 1000;
  if (seconds < 10) return 'just now';
  const [size, unit] = UNITS.find(([length]) => seconds >= length);
  return `${Math.floor(seconds / size)} ${unit} ago`;
}

// For screen readers.
export function announce(text) {
  document.getElementById('announce').textContent = text;
}

function updateTimes() {
  for (const time of document.querySelectorAll('time[data-ago]')) {
    const text = ago(Date.parse(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}

setInterval(() => { if (!document.hidden) updateTimes(); }, 20_000);
document.addEventListener('visibilitychange', () => { if (!document.hidden) updateTimes(); });

for (const menu of document.querySelectorAll('details.menu')) {
  document.addEventListener('click', (event) => { if (!menu.contains(event.target)) menu.open = false; });
  menu.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !menu.open) return;
    menu.open = false;
    menu.querySelector('summary').focus();
  });
}
