// The pages of one task: live parts, copy buttons, the dialog.

import { ANSWER_MS, announce, showContact } from './ui.js';

const QUIET_MS = 10_000; // between looks without an event
const FALLBACK_MS = 3_000; // where events do not arrive
const root = document.getElementById('task');
let isOver = root.dataset.over === 'yes';
let isAsking = false;
let isAskedAgain = false;
const shown = new Map(); // of each live part: as the service sent it
for (const part of document.querySelectorAll('[data-live]')) shown.set(part.id, part.outerHTML);

// ── live: parts with `data-live` are replaced by those of the page as it is now ──

async function refresh() {
  if (isAsking) { isAskedAgain = true; return; }
  isAsking = true;
  try {
    const response = await fetch(location.href, { headers: { Accept: 'text/html' }, redirect: 'manual', signal: AbortSignal.timeout(ANSWER_MS) });
    if (response.ok) update(new DOMParser().parseFromString(await response.text(), 'text/html'));
    else if (response.type === 'opaqueredirect') location.reload();
    showContact(response.status >= 500 ? 'lost' : '');
  } catch { // the network, or no answer in time; the next look may succeed
    showContact('lost');
  } finally {
    isAsking = false;
    if (isAskedAgain) { isAskedAgain = false; refresh(); }
  }
}

function update(page) {
  const before = stateWord();
  for (const part of document.querySelectorAll('[data-live]')) {
    const now = page.getElementById(part.id);
    if (now !== null && now.outerHTML !== shown.get(part.id)) replace(part, now);
  }
  const fresh = page.getElementById('task');
  isOver = fresh === null || fresh.dataset.over === 'yes';
  root.dataset.over = isOver ? 'yes' : 'no';
  if (stateWord() !== before) announce(`The task is now: ${stateWord()}`);
  if (isOver) stop();
  document.dispatchEvent(new CustomEvent('task-changed'));
}

function replace(part, now) {
  shown.set(part.id, now.outerHTML);
  for (const details of part.querySelectorAll('details[open]')) {
    const same = details.id && now.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = true;
  }
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const index = focused && [...part.querySelectorAll('a, button, summary, [tabindex]')].indexOf(focused);
  part.replaceWith(now);
  showCopyButtons(now);
  if (focused) [...now.querySelectorAll('a, button, summary, [tabindex]')][index]?.focus();
}

const stateWord = () => document.getElementById('task-state').textContent.trim();

let events = null;
let timer = null;

function listen() {
  if (isOver) return;
  let hasEvents = false;
  events = new EventSource(`/poiesis/v1/events?task=${encodeURIComponent(root.dataset.task)}`);
  events.addEventListener('open', () => { hasEvents = true; refresh(); });
  events.addEventListener('change', refresh);
  events.addEventListener('end', () => { events.close(); hasEvents = false; });
  events.addEventListener('error', () => { hasEvents = false; });
  let looked = Date.now();
  timer = setInterval(() => {
    if (document.hidden || Date.now() - looked < (hasEvents ? QUIET_MS : FALLBACK_MS)) return;
    looked = Date.now();
    refresh();
  }, 1000);
}

function stop() {
  events?.close();
  clearInterval(timer);
}

// ── copy buttons: hidden without JavaScript ──

const ICON = 'M5.5 5.5v-3h8v8h-3 M2.5 5.5h8v8h-8z';
const TICK = 'M3 8.5l3.5 3.5L13 4.5';

function icon(path) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('aria-hidden', 'true');
  svg.append(document.createElementNS('http://www.w3.org/2000/svg', 'path'));
  svg.firstChild.setAttribute('d', path);
  return svg;
}

function showCopyButtons(within) {
  for (const button of within.querySelectorAll('.copy[hidden]')) {
    button.hidden = false;
    button.append(icon(ICON));
  }
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch { // not over http, or not allowed
    const area = document.createElement('textarea');
    area.className = 'unseen';
    area.value = button.dataset.copy;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  announce('Copied');
  button.classList.add('copied');
  button.replaceChildren(icon(TICK));
  setTimeout(() => { button.classList.remove('copied'); button.replaceChildren(icon(ICON)); }, 1500);
}

document.addEventListener('click', (event) => {
  const target = event.target.closest('.copy, [data-dialog], [data-close]');
  if (target === null) return;
  if (target.matches('.copy')) { copy(target); return; }
  const dialog = target.dataset.dialog ? document.getElementById(target.dataset.dialog) : target.closest('dialog');
  if (dialog === null) return;
  event.preventDefault();
  if (target.dataset.dialog) dialog.showModal(); else dialog.close();
});

showCopyButtons(document);
listen();
