// The overview stays current while it can be seen. What is open and where the focus is stay as they are.

const EVERY_MS = 5000;
let kept = {};

setInterval(() => {
  if (!document.hidden) window.htmx?.trigger('#overview', 'refresh');
}, EVERY_MS);

document.addEventListener('htmx:beforeSwap', (event) => {
  const target = event.detail.target;
  if (target.id !== 'overview') return;
  kept = {
    open: [...target.querySelectorAll('details[open]')].map((details) => details.id),
    focus: target.contains(document.activeElement) ? document.activeElement.id : '',
  };
});

document.addEventListener('htmx:afterSwap', () => {
  for (const id of kept.open ?? []) document.getElementById(id)?.setAttribute('open', '');
  if (kept.focus) document.getElementById(kept.focus)?.focus({ preventScroll: true });
  kept = {};
});
