"use strict";
// What every page of the board does by itself: it looks again while something runs, shows the command that a form
// is, and copies it. Without it the pages lack nothing else: forms work, and the browser loads a page again.
const board = document.getElementById("board").dataset;
const banner = document.getElementById("banner");
const GONE = "The board does not answer. What it has started goes on; start the board again by: finetune board";
const OTHER = "This board was started again: open the address that it has printed. What was started goes on.";

function say(text) {
  if (banner.textContent !== text) banner.textContent = text;
}

// --- Looking again

async function fetched() {
  try {
    const response = await fetch(location.href, { redirect: "manual" });
    if (response.status === 403) say(OTHER);
    else if (response.ok) return new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    say(GONE);
  }
  return null;
}

// A part that a person is in stays as it is, and so does what was marked.
function takeOver(now) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = now.querySelector(`[data-live="${old.dataset.live}"]`);
    if (!fresh || old.innerHTML === fresh.innerHTML) continue;
    if (old !== document.activeElement && old.contains(document.activeElement)) continue;
    if (old.querySelector("input:checked")) continue;
    const atEnd = old.scrollHeight - old.scrollTop - old.clientHeight < 30;
    old.replaceChildren(...fresh.childNodes);
    old.className = fresh.className;
    if (atEnd) old.scrollTop = old.scrollHeight;
  }
}

async function look() {
  const began = performance.now();
  const now = document.hidden ? null : await fetched();
  if (now) {
    say("");
    const fresh = now.getElementById("board").dataset;
    // What is new on the page (first samples, a first warning) has no place in this one yet.
    const parts = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.dataset.live).join();
    const other = fresh.state !== board.state || parts(now) !== parts(document);
    if (other && !document.querySelector(".dirty")) {
      location.reload();
      return;
    }
    takeOver(now);
    board.every = fresh.every;
  }
  // A page that takes long to make is not asked for all the time.
  if (Number(board.every)) {
    setTimeout(look, Math.max(1000 * Number(board.every), 5 * (performance.now() - began)));
  }
}
if (Number(board.every)) setTimeout(look, 1000 * Number(board.every));
document.addEventListener("visibilitychange", async () => {
  const now = document.hidden ? null : await fetched();
  if (now) takeOver(now);
});
for (const log of document.querySelectorAll("pre.output")) log.scrollTop = log.scrollHeight;

// --- Commands

async function post(address, fields) {
  const headers = { Accept: "application/json" };
  const response = await fetch(address, { method: "POST", headers, body: new URLSearchParams(fields) });
  if (response.status === 403) say(OTHER);
  return response;
}

for (const form of document.querySelectorAll("form[data-verb]")) {
  form.addEventListener("input", async () => {
    form.classList.add("dirty");
    try {
      const response = await post("/command", new FormData(form));
      if (response.ok) form.querySelector(".command code").textContent = await response.text();
    } catch {
      say(GONE);
    }
  });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Marked: copy it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
