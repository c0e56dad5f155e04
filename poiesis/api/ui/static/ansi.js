// Output of commands as nodes: colours and styles of terminals as classes, everything else that steers a terminal or a browser as text.

const TOKEN = new RegExp([
  '\\x1b\\[([0-9;:]{0,64})m', // colours and styles
  '\\x1b(?:\\[[0-?]{0,64}[ -/]{0,8}[@-~]|[\\]PX^_][^\\x07\\x1b]{0,4096}(?:\\x07|\\x1b\\\\)|[ -/]{0,8}[0-~])', // all else: dropped
  '\\r\\n?',
  '[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ufff9-\\ufffb]',
].join('|'), 'g');
const MAX_SPANS = 5000; // of one piece; the rest has the style of the last one
const PALETTE = [
  [0, 0, 0], [187, 0, 0], [0, 187, 0], [187, 187, 0], [0, 0, 187], [187, 0, 187], [0, 187, 187], [187, 187, 187],
  [85, 85, 85], [255, 85, 85], [0, 255, 0], [255, 255, 85], [85, 85, 255], [255, 85, 255], [85, 255, 255], [255, 255, 255],
];
const FLAGS = { 1: 'bold', 2: 'dim', 3: 'italic', 4: 'underline', 7: 'inverse', 9: 'strike' };
const OFF = { 22: ['bold', 'dim'], 23: ['italic'], 24: ['underline'], 27: ['inverse'], 29: ['strike'] };

function nearest(red, green, blue) {
  let best = 0;
  let least = Infinity;
  PALETTE.forEach(([r, g, b], index) => {
    const distance = (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2;
    if (distance < least) { least = distance; best = index; }
  });
  return best;
}

function extended(codes) { // after 38 or 48: `5;N` or `2;R;G;B`
  const kind = codes.shift();
  if (kind === 2) {
    const [red, green, blue] = codes.splice(0, 3);
    return nearest(red || 0, green || 0, blue || 0);
  }
  if (kind !== 5) return null;
  const index = codes.shift() || 0;
  if (index < 16) return index;
  if (index > 231) { const grey = 8 + (index - 232) * 10; return nearest(grey, grey, grey); }
  const step = (n) => (n === 0 ? 0 : 55 + n * 40);
  const cube = index - 16;
  return nearest(step(Math.floor(cube / 36)), step(Math.floor(cube / 6) % 6), step(cube % 6));
}

function styled(style, parameters) {
  const next = { ...style };
  const codes = parameters.split(/[;:]/).map((text) => Number(text) || 0);
  while (codes.length) {
    const code = codes.shift();
    if (code === 0) { for (const name of Object.keys(next)) delete next[name]; }
    else if (code in FLAGS) next[FLAGS[code]] = true;
    else if (code in OFF) for (const name of OFF[code]) delete next[name];
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
    else if (code === 38 || code === 48) {
      const colour = extended(codes);
      if (colour !== null) next[code === 38 ? 'fg' : 'bg'] = colour;
    } else if (code === 39) delete next.fg;
    else if (code === 49) delete next.bg;
  }
  return next;
}

function classesOf(style) {
  return Object.entries(style).map(([name, value]) => (value === true ? `t-${name}` : `t-${name}-${value}`)).join(' ');
}

function symbol(character) {
  const code = character.codePointAt(0);
  if (code === 13) return '\n';
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  return code === 127 ? '\u2421' : `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
}

// Append `text` to `parent` in the style with which the text before it ended; returns the style in which it ends.
export function render(parent, text, style = {}) {
  let plain = '';
  let spans = 0;
  const flush = () => {
    if (plain === '') return;
    const classes = spans < MAX_SPANS ? classesOf(style) : '';
    if (classes === '') parent.append(plain);
    else {
      const span = document.createElement('span');
      span.className = classes;
      span.textContent = plain;
      parent.append(span);
      spans += 1;
    }
    plain = '';
  };
  let at = 0;
  for (const found of text.matchAll(TOKEN)) {
    plain += text.slice(at, found.index);
    at = found.index + found[0].length;
    if (found[1] !== undefined) {
      flush();
      style = styled(style, found[1]);
    } else if (found[0].startsWith('\r')) plain += '\n';
    else if (found[0].length === 1) plain += symbol(found[0]);
  }
  plain += text.slice(at);
  flush();
  return style;
}
