// The list of tasks while it is open: states that change, new tasks announced, boxes that choose.
import { announce, contact } from './ui.js';

const POLL_MS = 15_000;
const list = () => document.getElementById('tasks');

// States by server-sent events. A hidden page has no stream; one that comes back loads the list again.

let stream = null;
let hiddenAt = 0;
let fresh = new Set();
let poll = 0;
let hasGap = false; // what happened since the last stream is not known

function show(change) {
  const row = document.getElementById(`task-${change.id}`);
  if (!row) {
    const first = list().querySelector('tr[id^="task-"]');
    if (list().dataset.first && (!first || change.id > first.id.slice(5))) {
      fresh.add(change.id);
      showNews();
    }
    return;
  }
  const badge = row.querySelector('.badge');
  if (badge.dataset.state === change.state) return;
  const groups = JSON.parse(list().dataset.groups);
  badge.dataset.state = change.state;
  badge.className = `badge ${groups[change.state] || ''}`;
  const word = change.state.replaceAll('_', ' ').toLowerCase();
  badge.lastChild.textContent = word[0].toUpperCase() + word.slice(1);
  const why = row.querySelector('.why');
  if (why) why.textContent = change.reason || '';
}

function showNews() {
  const news = document.getElementById('news');
  if (!news || !fresh.size) return;
  const text = fresh.size === 1 ? '1 new task.' : `${fresh.size} new tasks.`;
  document.getElementById('news-count').textContent = text;
  if (news.hidden) announce(text);
  news.hidden = false;
}

function reload() {
  window.htmx.ajax('GET', location.pathname + location.search, { target: '#tasks', select: '#tasks', swap: 'outerHTML' });
}

function open() {
  if (stream || document.hidden) return;
  stream = new EventSource('/poiesis/v1/events');
  stream.addEventListener('change', (event) => show(JSON.parse(event.data)));
  stream.addEventListener('end', () => { close(); hasGap = true; setTimeout(open, 2000); });
  stream.addEventListener('open', () => {
    clearInterval(poll);
    poll = 0;
    if (hasGap) reload();
    hasGap = false;
  });
  stream.addEventListener('error', () => {
    contact();
    // refused for good, such as too many streams: the list is loaded now and then instead
    if (stream && stream.readyState === EventSource.CLOSED && !poll) poll = setInterval(() => { if (!document.hidden) reload(); }, POLL_MS);
  });
}

function close() {
  stream?.close();
  stream = null;
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) {
    hiddenAt = Date.now();
    close();
  } else {
    if (Date.now() - hiddenAt > 5000) reload();
    open();
  }
});
addEventListener('pagehide', close);
open();

// Boxes

const boxes = () => [...list().querySelectorAll('input[name="id"]')];

function showChosen() {
  const tools = document.getElementById('chosen');
  if (!tools) return;
  const count = boxes().filter((box) => box.checked).length;
  document.getElementById('chosen-count').textContent = count ? `${count} chosen:` : 'None chosen:';
  for (const button of tools.querySelectorAll('button')) button.disabled = !count;
  const all = document.getElementById('choose-all');
  all.hidden = false;
  all.checked = count > 0 && count === boxes().length;
  all.indeterminate = count > 0 && !all.checked;
}

document.addEventListener('change', (event) => {
  if (event.target.id === 'choose-all') for (const box of boxes()) box.checked = event.target.checked;
  if (event.target.id === 'choose-all' || event.target.name === 'id') showChosen();
});

// Parts loaded by htmx: an address has only the filters that are set, and what was chosen stays chosen.

let chosen = new Set();
document.addEventListener('htmx:configRequest', (event) => {
  if (event.detail.elt.id !== 'filters') return;
  for (const [name, value] of Object.entries(event.detail.parameters)) if (value === '') delete event.detail.parameters[name];
});
document.addEventListener('htmx:beforeSwap', () => { chosen = new Set(boxes().filter((box) => box.checked).map((box) => box.value)); });
document.addEventListener('htmx:afterSwap', () => {
  for (const box of boxes()) box.checked = chosen.has(box.value);
  fresh = new Set();
  showChosen();
  const rows = list().querySelectorAll('tbody tr').length;
  announce(rows === 1 ? '1 task shown' : `${rows} tasks shown`);
});
showChosen();
