// What every page has: times that stay current, a menu that closes, and a notice where the page has lost the service or its session.

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

// ── contact to the service ──

const AGAIN_MS = 5000;
export const ANSWER_MS = 10_000; // after which a service that does not answer counts as lost
const notice = document.getElementById('contact');

// 'lost': the service does not respond; 'ended': the session has; '': neither.
export function showContact(trouble) {
  if (notice.dataset.trouble === trouble) return;
  notice.dataset.trouble = trouble;
  for (const text of notice.children) text.hidden = text.dataset.of !== trouble;
  notice.hidden = trouble === '';
}

// Look whether the service answers and the session lasts. After another login the forms of this page get its token.
export async function contact() {
  let response = null;
  try {
    response = await fetch(location.href, { headers: { Accept: 'text/html' }, redirect: 'manual', signal: AbortSignal.timeout(ANSWER_MS) });
  } catch { /* the network, or no answer in time */ }
  if (response === null || response.status >= 500 || response.type === 'opaqueredirect') {
    showContact(response?.type === 'opaqueredirect' ? 'ended' : 'lost');
    return false;
  }
  showContact('');
  if (response.ok) renew(new DOMParser().parseFromString(await response.text(), 'text/html'));
  return true;
}

function renew(page) {
  document.body.setAttribute('hx-headers', page.body.getAttribute('hx-headers'));
  const who = document.querySelector('.who');
  if (who !== null) who.textContent = page.querySelector('.who')?.textContent ?? '';
  const token = page.querySelector('input[name=csrf_token]')?.value;
  if (token) for (const field of document.querySelectorAll('input[name=csrf_token]')) field.value = token;
}

document.addEventListener('htmx:sendError', () => showContact('lost'));
document.addEventListener('htmx:responseError', (event) => {
  const { status } = event.detail.xhr;
  if (status >= 500) showContact('lost');
  else if (status === 401 || status === 403) contact();
});
document.addEventListener('htmx:afterOnLoad', (event) => { if (event.detail.xhr.status < 400) showContact(''); });
setInterval(() => { if (!notice.hidden && !document.hidden) contact(); }, AGAIN_MS);

for (const menu of document.querySelectorAll('details.menu')) {
  document.addEventListener('click', (event) => { if (!menu.contains(event.target)) menu.open = false; });
  menu.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !menu.open) return;
    menu.open = false;
    menu.querySelector('summary').focus();
  });
}
