// The viewer of logs. Of a log of any size it holds at most MAX_CHUNKS pieces, which it reads by ranges while the user moves through it.

import { announce } from './ui.js';
import { render } from './ansi.js';

const STEP = 256 * 1024;
const MAX_CHUNKS = 4;
const SEARCH_STEP = 4 * 1024 * 1024;
const POLL_MS = 1000;
const QUIET_POLL_MS = 3000;
const QUIET_AFTER_MS = 60_000;
const MAX_RETRY_MS = 30_000;
const NEWLINE = 10;
const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];
const LOWER = Uint8Array.from({ length: 256 }, (_, code) => (code > 64 && code < 91 ? code + 32 : code));

function sized(bytes) {
  let unit = 0;
  let amount = bytes;
  while (amount >= 1000 && unit < UNITS.length - 1) { amount /= 1000; unit += 1; }
  return unit === 0 ? `${bytes} B` : `${amount.toPrecision(3)} ${UNITS[unit]}`;
}

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

// ── bytes of one log ──

class Log {
  constructor(path, size, isComplete) {
    this.path = path;
    this.size = size;
    this.isComplete = isComplete;
  }

  // Look at the size; true if it has changed.
  async look() {
    const response = await this.ask({ method: 'HEAD' });
    const size = Number(response.headers.get('content-length'));
    const changed = size !== this.size;
    this.size = size;
    this.isComplete = response.headers.get('poiesis-log-complete') === 'true';
    return changed;
  }

  // The bytes from `start` to `end`, of which there are fewer at the end of the log.
  async read(start, end) {
    const last = Math.min(end, this.size);
    if (start >= last) return new Uint8Array();
    const response = await this.ask({ headers: { Range: `bytes=${start}-${last - 1}` } });
    return new Uint8Array(await response.arrayBuffer());
  }

  // A service that is busy, or restarts, is asked again.
  async ask(options) {
    for (let wait = 500; ; wait = Math.min(wait * 2, MAX_RETRY_MS)) {
      const response = await fetch(this.path, { ...options, credentials: 'same-origin' }).catch(() => null);
      if (response?.ok) return response;
      if (response !== null && response.status !== 429 && response.status < 500) throw new Error(`the service refuses this log (${response.status})`);
      await pause(Math.max(wait, 1000 * Number(response?.headers.get('retry-after') || 0)));
    }
  }
}

// ── what is shown of it ──

class Pane {
  constructor(section) {
    this.section = section;
    this.view = section.querySelector('.log');
    this.status = section.querySelector('.pane-status');
    this.slider = section.querySelector('.position');
    this.isTail = section.dataset.source === 'tail';
    this.log = new Log(section.dataset.path, Number(section.dataset.size), section.dataset.complete === 'yes');
    this.chunks = []; // { start, end, bytes, node, before, after }: without gaps
    this.work = Promise.resolve();
    this.match = null;
    this.isFinal = false;
    this.isSearching = false;
    this.isMoving = false;
    section.querySelector('.pane-tools').hidden = false;
    this.listen();
  }

  listen() {
    const find = (selector) => this.section.querySelector(selector);
    this.view.addEventListener('scroll', () => this.moved(), { passive: true });
    this.view.addEventListener('wheel', (event) => { if (event.deltaY < 0) setFollow(false); }, { passive: true });
    this.view.addEventListener('touchmove', () => setFollow(false), { passive: true });
    this.view.addEventListener('keydown', (event) => {
      if (event.key === 'ArrowUp' || event.key === 'PageUp') setFollow(false);
      if (event.key === 'Home') { event.preventDefault(); this.jump(0); }
      if (event.key === 'End') { event.preventDefault(); this.toEnd(); }
      if (event.key === '/') { event.preventDefault(); find('.needle').focus(); }
    });
    find('.to-start').addEventListener('click', () => this.jump(0));
    find('.to-end').addEventListener('click', () => this.toEnd());
    this.slider.addEventListener('change', () => {
      const at = Number(this.slider.value) / 1000;
      if (at >= 1) this.toEnd(); else this.jump(Math.floor(this.log.size * at));
    });
    find('.search').addEventListener('submit', (event) => { event.preventDefault(); this.search(1); });
    find('.previous').addEventListener('click', () => this.search(-1));
    find('.needle').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && event.shiftKey) { event.preventDefault(); this.search(-1); }
      if (event.key === 'Escape') { this.isSearching = false; this.view.focus(); }
    });
  }

  // One after the other: each step changes what the next one sees.
  queue(step) {
    this.work = this.work.then(step).catch((error) => { this.say(error.message); });
    return this.work;
  }

  say(text) {
    this.status.textContent = text;
  }

  // ── pieces ──

  // Bytes from a line's beginning at or after `start` to the last line's end before `end`; where there are no lines, from and to whole
  // characters. `isAligned`: a line begins at `start`; `isJoined`: what follows `end` is shown already.
  async piece(start, end, { isAligned = false, isJoined = false } = {}) {
    let bytes = await this.log.read(start, end);
    if (start > 0 && !isAligned) {
      let skip = bytes.indexOf(NEWLINE) + 1;
      if (skip === 0 || skip === bytes.length) for (skip = 0; skip < 3 && (bytes[skip] & 0xc0) === 0x80;) skip += 1;
      bytes = bytes.subarray(skip);
      start += skip;
    }
    if (end < this.log.size && !isJoined) {
      const line = bytes.lastIndexOf(NEWLINE) + 1;
      bytes = bytes.subarray(0, line > 0 ? line : wholeCharacters(bytes));
    }
    return { start, end: start + bytes.length, bytes, node: null, before: {}, after: {} };
  }

  draw(chunk, before) {
    const node = document.createElement('pre');
    node.className = 'chunk';
    const text = (bytes) => new TextDecoder().decode(bytes);
    const { match } = this;
    let style = before;
    if (match !== null && match.start >= chunk.start && match.start < chunk.end) {
      const [from, to] = [match.start - chunk.start, match.end - chunk.start];
      style = render(node, text(chunk.bytes.subarray(0, from)), style);
      const mark = document.createElement('mark');
      style = render(mark, text(chunk.bytes.subarray(from, to)), style);
      node.append(mark);
      style = render(node, text(chunk.bytes.subarray(to)), style);
    } else style = render(node, text(chunk.bytes), style);
    Object.assign(chunk, { node, before, after: style });
    return node;
  }

  redraw(chunk) {
    const old = chunk.node;
    old.replaceWith(this.draw(chunk, chunk.before));
  }

  append(chunk) {
    if (chunk.bytes.length === 0) return;
    const last = this.chunks.at(-1);
    this.view.append(this.draw(chunk, last?.after ?? {}));
    this.chunks.push(chunk);
    while (this.chunks.length > MAX_CHUNKS) {
      const gone = this.chunks.shift();
      const height = this.view.scrollHeight;
      gone.node.remove();
      this.view.scrollTop -= height - this.view.scrollHeight;
    }
  }

  prepend(chunk) {
    if (chunk.bytes.length === 0) return;
    const height = this.view.scrollHeight;
    this.view.prepend(this.draw(chunk, {}));
    this.view.scrollTop += this.view.scrollHeight - height;
    this.chunks.unshift(chunk);
    while (this.chunks.length > MAX_CHUNKS) this.chunks.pop().node.remove();
  }

  clear() {
    this.chunks = [];
    this.view.replaceChildren();
  }

  // ── moving ──

  moved() {
    this.show();
    if (this.isMoving) return;
    const { scrollTop, scrollHeight, clientHeight } = this.view;
    const [first, last] = [this.chunks[0], this.chunks.at(-1)];
    if (first === undefined) return;
    const isNearTop = scrollTop < 1.5 * clientHeight && first.start > 0;
    const isNearEnd = scrollHeight - scrollTop - clientHeight < 1.5 * clientHeight && last.end < this.log.size;
    if (!isNearTop && !isNearEnd) return;
    this.isMoving = true;
    this.queue(() => (isNearTop ? this.earlier() : this.later())).finally(() => { this.isMoving = false; });
  }

  async earlier() {
    const first = this.chunks[0];
    if (first === undefined || first.start === 0) return;
    this.prepend(await this.piece(Math.max(0, first.start - STEP), first.start, { isJoined: true }));
    this.show();
  }

  async later() {
    const last = this.chunks.at(-1);
    const start = last?.end ?? 0;
    if (start >= this.log.size) return;
    this.append(await this.piece(start, start + STEP, { isAligned: true }));
    this.show();
  }

  jump(position) {
    setFollow(false);
    return this.queue(() => this.load(position));
  }

  async load(position, isLine = false) {
    const start = Math.max(0, Math.min(position, this.log.size - 1));
    const chunk = await this.piece(start, start + STEP, { isAligned: isLine });
    this.clear();
    this.append(chunk);
    this.view.scrollTop = 0;
    await this.fill();
  }

  async fill() {
    for (let turn = 0; turn < 2 && this.view.scrollHeight <= this.view.clientHeight * 1.5; turn += 1) {
      if ((this.chunks.at(-1)?.end ?? 0) < this.log.size) await this.later();
      else if ((this.chunks[0]?.start ?? 0) > 0) await this.earlier();
    }
    this.show();
  }

  toEnd() {
    return this.queue(async () => {
      await this.load(Math.max(0, this.log.size - STEP));
      this.view.scrollTop = this.view.scrollHeight;
      this.show();
    });
  }

  get isAtEnd() {
    const last = this.chunks.at(-1);
    return last === undefined || (last.end >= this.log.size && this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < 40);
  }

  // The byte at the top of the view, about.
  get top() {
    const edge = this.view.getBoundingClientRect().top;
    for (const chunk of this.chunks) {
      const box = chunk.node.getBoundingClientRect();
      if (box.bottom > edge) {
        const part = Math.max(0, edge - box.top) / Math.max(1, box.height);
        return Math.floor(chunk.start + part * (chunk.end - chunk.start));
      }
    }
    return this.log.size;
  }

  show() {
    if (this.isSearching) return;
    const { size } = this.log;
    const last = this.chunks.at(-1);
    const isWhole = last !== undefined && this.chunks[0].start === 0 && last.end >= size;
    const part = this.isAtEnd ? 1 : this.top / Math.max(1, size);
    this.slider.value = String(Math.round(part * 1000));
    this.slider.setAttribute('aria-valuetext', `${Math.round(part * 100)} %`);
    this.say(isWhole || size === 0 ? sized(size) : `${part === 1 ? 'end' : `${Math.round(part * 100)} %`} of ${sized(size)}`);
    this.section.querySelector('.empty-log').hidden = size > 0;
    this.section.classList.toggle('is-empty', size === 0);
  }

  // ── following ──

  // What has come since the last look; the last piece is read again, because it may end within a line.
  async update() {
    const before = this.log.size;
    const changed = await this.log.look();
    if (this.isTail) {
      if (!isOver()) await fetch(`/ga4gh/tes/v1/tasks/${root.dataset.task}?view=FULL`); // lets the output be read again
      const bytes = await this.log.read(0, this.log.size);
      const last = this.chunks[0];
      if (last === undefined || !same(bytes, last.bytes)) {
        this.clear();
        this.append({ start: 0, end: bytes.length, bytes });
        this.view.scrollTop = this.view.scrollHeight;
      }
    } else if (changed && (follows() || this.chunks.length === 0)) {
      const last = this.chunks.at(-1);
      if (this.log.size - before > STEP * MAX_CHUNKS || last === undefined) await this.load(Math.max(0, this.log.size - STEP));
      else {
        if (last.end - last.start < STEP) { this.chunks.pop(); last.node.remove(); await this.again(last.start); }
        while (this.chunks.at(-1).end < this.log.size) await this.later();
      }
      if (follows()) this.view.scrollTop = this.view.scrollHeight;
    }
    this.show();
    return changed;
  }

  async again(start) {
    this.append(await this.piece(start, start + STEP, { isAligned: true }));
  }

  // ── searching ──

  async search(direction) {
    const text = this.section.querySelector('.needle').value;
    if (text === '' || this.isSearching) { this.isSearching = false; return; }
    const needle = new TextEncoder().encode(text).map((code) => LOWER[code]);
    const from = this.match !== null && this.match.text === text ? this.match.start + (direction > 0 ? 1 : 0) : direction > 0 ? this.top : this.log.size;
    setFollow(false);
    this.isSearching = true;
    try {
      const found = await this.scan(needle, from, direction) ?? await this.scan(needle, direction > 0 ? 0 : this.log.size, direction, from);
      if (!this.isSearching) { this.say('The search was stopped.'); return; }
      this.isSearching = false;
      if (found === null) { this.say(`“${text}” was not found`); announce('Not found'); return; }
      this.match = { text, start: found, end: found + needle.length };
      await this.queue(() => this.reveal());
      announce(`Found at ${Math.round((100 * found) / this.log.size)} %`);
    } catch (error) { this.isSearching = false; this.say(error.message); }
  }

  // The position of the first match from `from` on, up to `until` in a second round; null: there is none.
  async scan(needle, from, direction, until = direction > 0 ? this.log.size : 0) {
    const overlap = needle.length - 1;
    let at = from;
    while (direction > 0 ? at < until : at > until) {
      const start = direction > 0 ? at : Math.max(until, at - SEARCH_STEP);
      const end = direction > 0 ? Math.min(at + SEARCH_STEP, until) : at;
      this.say(`Searching… ${Math.round((100 * start) / this.log.size)} %, Escape stops`);
      const bytes = await this.log.read(start, end + overlap);
      if (!this.isSearching) return null;
      const found = direction > 0 ? indexOf(bytes, needle, 0, end - start) : lastIndexOf(bytes, needle, end - start);
      if (found >= 0) return start + found;
      at = direction > 0 ? end : start;
    }
    return null;
  }

  async reveal() {
    const { match } = this;
    for (const mark of this.view.querySelectorAll('mark')) mark.replaceWith(...mark.childNodes);
    const loaded = this.chunks.find((chunk) => match.start >= chunk.start && match.end <= chunk.end);
    if (loaded) this.redraw(loaded);
    else {
      const near = Math.max(0, match.start - STEP / 4);
      const bytes = await this.log.read(near, match.start);
      const line = near === 0 ? 0 : bytes.indexOf(NEWLINE) + 1;
      await this.load(near + line, true);
    }
    const mark = this.view.querySelector('mark');
    mark?.scrollIntoView({ block: 'center', inline: 'nearest' });
    this.show();
  }
}

function wholeCharacters(bytes) {
  let end = bytes.length;
  while (end > 0 && bytes.length - end < 4 && (bytes[end - 1] & 0xc0) === 0x80) end -= 1;
  return end > 0 && bytes[end - 1] >= 0xc0 ? end - 1 || bytes.length : bytes.length;
}

function same(one, other) {
  return one.length === other.length && one.every((byte, index) => byte === other[index]);
}

function matches(bytes, needle, at) {
  for (let index = 0; index < needle.length; index += 1) if (LOWER[bytes[at + index]] !== needle[index]) return false;
  return true;
}

function indexOf(bytes, needle, from, until) {
  const last = Math.min(until, bytes.length - needle.length + 1);
  for (let at = from; at < last; at += 1) if (LOWER[bytes[at]] === needle[0] && matches(bytes, needle, at)) return at;
  return -1;
}

function lastIndexOf(bytes, needle, until) {
  for (let at = Math.min(until, bytes.length - needle.length + 1) - 1; at >= 0; at -= 1) {
    if (LOWER[bytes[at]] === needle[0] && matches(bytes, needle, at)) return at;
  }
  return -1;
}

// ── the page ──

const root = document.getElementById('panes');
const followBox = document.getElementById('follow');
const wrapBox = document.getElementById('wrap');
const follows = () => followBox.checked;

function setFollow(value) {
  followBox.checked = value;
}

const panes = [...document.querySelectorAll('.pane[data-size]')].map((section) => new Pane(section));
const isOver = () => document.getElementById('task').dataset.over === 'yes' || root.dataset.latest === 'no';
const isDone = (pane) => pane.log.isComplete || pane.isFinal;

async function follow() {
  let changedAt = Date.now();
  while (panes.some((pane) => !isDone(pane))) {
    await pause(Date.now() - changedAt > QUIET_AFTER_MS ? QUIET_POLL_MS : POLL_MS);
    if (document.hidden) continue;
    for (const pane of panes.filter((each) => !isDone(each))) {
      let changed = false;
      const wasOver = isOver();
      await pane.queue(async () => { changed = await pane.update(); });
      pane.isFinal = pane.isTail && wasOver;
      if (changed) changedAt = Date.now();
    }
    if (isOver() && Date.now() - changedAt > QUIET_AFTER_MS) break; // the end of a log of a lost pod is never stored
  }
  document.getElementById('follow-choice').hidden = true;
}

wrapBox.addEventListener('change', () => root.classList.toggle('no-wrap', !wrapBox.checked));
followBox.addEventListener('change', () => { if (follows()) for (const pane of panes) pane.toEnd(); });
document.querySelector('.log-options').hidden = panes.length === 0;
setFollow(!isOver());
for (const pane of panes) pane.toEnd();
follow();
