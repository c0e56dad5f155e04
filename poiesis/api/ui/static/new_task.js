// Buttons that copy a text, and a preview whose parts stay open.

import { announce, contact } from './ui.js';

let open = [];

function showButtons() {
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll('[data-copy-from]')) button.hidden = false;
}

document.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy-from]');
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copyFrom).textContent);
  button.textContent = 'Copied';
  announce('Copied');
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});

// What was typed is not lost to a session that has ended or a service that is away: before the form leaves the page, both are looked at.

let isSure = false;

document.addEventListener('submit', async (event) => {
  if (event.target.id !== 'task-form' || isSure) return;
  event.preventDefault();
  const { submitter } = event;
  isSure = await contact();
  if (isSure) event.target.requestSubmit(submitter);
  isSure = false;
});
document.addEventListener('visibilitychange', () => { if (!document.hidden) contact(); });

document.addEventListener('htmx:beforeSwap', () => {
  open = [...document.querySelectorAll('#preview details')].map((details) => [details.id, details.open]);
});
document.addEventListener('htmx:afterSettle', () => {
  for (const [id, isOpen] of open) document.getElementById(id)?.toggleAttribute('open', isOpen);
  showButtons();
});
showButtons();
