"use strict";
// Keys, confirmations and local times. Every page works without this file.

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && field) { field.blur(); return; }
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") { document.getElementById("keys").showModal(); return; }
  if (event.key === "m") {
    const text = document.getElementById("text");
    if (text) { event.preventDefault(); text.focus(); }
    return;
  }
  for (const link of document.querySelectorAll("nav a[data-key]")) {
    if (link.dataset.key === event.key) { event.preventDefault(); link.click(); return; }
  }
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// A message is sent by Ctrl-Enter, as in other chats.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("form.send textarea")) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});

// The name of the writer, and the place to write, stay from one message to the next. A browser may
// forbid the storage.
function stored(storage, change) {
  try { return change(storage()); } catch { return null; }
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form.send") || event.defaultPrevented) return;
  stored(() => localStorage, (storage) => storage.setItem("author", event.target.elements.author.value));
  stored(() => sessionStorage, (storage) => storage.setItem("sent", location.pathname));
});

function comeBackToTheForm() {
  const form = document.querySelector("form.send");
  if (!form) return;
  const author = stored(() => localStorage, (storage) => storage.getItem("author"));
  if (author && !form.elements.author.value) form.elements.author.value = author;
  if (stored(() => sessionStorage, (storage) => storage.getItem("sent")) !== location.pathname) return;
  stored(() => sessionStorage, (storage) => storage.removeItem("sent"));
  form.elements.text.focus({ preventScroll: true });
}

const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const SHORT = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

function showTimes(root) {
  const today = new Date().toDateString();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const time = new Date(element.dateTime);
    if (Number.isNaN(time.getTime())) continue;
    element.title = element.dateTime;
    element.textContent = (time.toDateString() === today ? SHORT : LONG).format(time);
  }
}

function markPage() {
  for (const link of document.querySelectorAll("nav a[data-key]")) {
    const path = new URL(link.href).pathname;
    const here = path === "/" ? location.pathname === "/" : location.pathname.startsWith(path);
    if (here) link.setAttribute("aria-current", "page");
  }
}

// A page that nobody sees asks for nothing.
document.addEventListener("htmx:beforeRequest", (event) => { if (document.hidden) event.preventDefault(); });

// A part of a page that is loaded again keeps the focus on its link. While a reader selects text in
// the part, it stays as it is.
let focused = null;

function linksLike(link, part) {
  return [...part.querySelectorAll("a[href]")].filter((one) => one.href === link.href);
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  const selection = document.getSelection();
  if (!selection.isCollapsed && part.contains(selection.anchorNode)) event.detail.shouldSwap = false;
  const active = document.activeElement;
  const isLink = part.contains(active) && active.matches("a[href]");
  focused = isLink ? { link: active, place: linksLike(active, part).indexOf(active) } : null;
});

document.addEventListener("htmx:afterSwap", (event) => {
  if (!focused || document.contains(focused.link)) return;
  const part = document.getElementById(event.detail.target.id);
  linksLike(focused.link, part)[focused.place]?.focus({ preventScroll: true });
  focused = null;
});

window.showTimes = showTimes;
showTimes(document);
markPage();
comeBackToTheForm();
document.addEventListener("htmx:afterSwap", (event) => showTimes(event.detail.elt.parentElement ?? document));
