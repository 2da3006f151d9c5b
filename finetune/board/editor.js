"use strict";
// The recipe's editor: a text area, with what `check` says while one writes, and what may come at the caret. It is
// in the same scope as board.js, which comes before it.
const editor = document.getElementById("editor");
const area = document.getElementById("text");
const numbers = editor.querySelector(".numbers");
const list = document.getElementById("completion");
const saved = document.getElementById("saved");
let kept = area.value;
let wrong = new Set();
let replaced = 0;
let asked = 0;

// --- Lines and problems

function number() {
  const count = area.value.split("\n").length;
  numbers.replaceChildren(...Array.from({ length: count }, (_, index) => {
    const line = document.createElement("span");
    line.textContent = `${index + 1}\n`;
    if (wrong.has(index + 1)) line.className = "wrong";
    return line;
  }));
  numbers.scrollTop = area.scrollTop;
}

function go(line, column) {
  const lines = area.value.split("\n");
  const at = lines.slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0) + column - 1;
  area.focus();
  area.setSelectionRange(at, at);
  area.scrollTop = (line - 5) * height();
}

function height() {
  return parseFloat(getComputedStyle(area).lineHeight);
}

function show(checked) {
  document.getElementById("summary").textContent = checked.summary;
  wrong = new Set(checked.problems.map((problem) => problem.line));
  document.getElementById("problems").replaceChildren(...checked.problems.map((problem) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "link" });
    Object.assign(button.dataset, { line: problem.line, column: problem.column });
    const place = problem.line ? `line ${problem.line}: ` : "";
    button.textContent = `${place}${problem.path} ${problem.message}`;
    item.append(button);
    return item;
  }));
  number();
}

document.getElementById("problems").addEventListener("click", (event) => {
  const { line, column } = event.target.dataset;
  if (Number(line)) go(Number(line), Number(column));
});

let waiting = null;
async function check() {
  const mine = (asked += 1);
  try {
    const response = await post("/check", { name: editor.dataset.name, text: area.value });
    if (response.ok && mine === asked) show(await response.json());
  } catch {
    say(GONE);
  }
}

// --- Saving

function mark() {
  const dirty = area.value !== kept;
  editor.classList.toggle("dirty", dirty);
  saved.textContent = dirty ? "not saved" : "";
}

async function save() {
  const text = area.value;
  try {
    const response = await post(editor.action, { text, mark: editor.elements.mark.value });
    const told = await response.json().catch(() => ({ error: "The board has refused it." }));
    if (!response.ok) {
      saved.textContent = told.error;
      return false;
    }
    editor.elements.mark.value = told.mark;
    kept = text;
    mark();
    saved.textContent = "saved";
    return true;
  } catch {
    say(GONE);
    return false;
  }
}

editor.addEventListener("submit", (event) => { event.preventDefault(); save(); });
window.addEventListener("beforeunload", (event) => { if (area.value !== kept) event.preventDefault(); });
// A command reads the file: what is written here is saved before it starts.
for (const form of document.querySelectorAll("form[data-verb]")) {
  form.addEventListener("submit", async (event) => {
    if (area.value === kept) return;
    event.preventDefault();
    if (await save()) form.submit();
    else saved.scrollIntoView({ block: "center" });
  });
}

// --- Completion

function close() {
  list.hidden = true;
  area.removeAttribute("aria-activedescendant");
}

function choose(item) {
  for (const other of list.children) other.setAttribute("aria-selected", String(other === item));
  area.setAttribute("aria-activedescendant", item.id);
  item.scrollIntoView({ block: "nearest" });
}

function chosen() {
  return list.querySelector('[aria-selected="true"]');
}

function take(item) {
  const at = area.selectionStart;
  area.setSelectionRange(at - replaced, at);
  const { text } = item.dataset;
  // Where a colon follows there is one already. By the browser's own editing, so that it can be undone.
  const word = /^\s*:/.test(area.value.slice(at)) ? text.replace(/:\s*$/, "") : text;
  document.execCommand("insertText", false, word);
  close();
}

function place() {
  const before = area.value.slice(0, area.selectionStart).split("\n");
  const style = getComputedStyle(area);
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = style.font;
  const across = pen.measureText(before.at(-1)).width + parseFloat(style.paddingLeft) - area.scrollLeft;
  const down = before.length * height() + parseFloat(style.paddingTop) - area.scrollTop;
  list.style.left = `${Math.max(0, Math.min(area.offsetLeft + across, editor.clientWidth - list.offsetWidth - 8))}px`;
  list.style.top = `${down + 4}px`;
}

async function complete() {
  const { value, selectionStart } = area;
  let told = { options: [] };
  try {
    const response = await post("/complete", { text: value, caret: [...value.slice(0, selectionStart)].length });
    if (response.ok) told = await response.json();
  } catch {
    say(GONE);
  }
  if (value !== area.value || selectionStart !== area.selectionStart) return;
  replaced = told.length;
  list.replaceChildren(...told.options.map((option, index) => {
    const item = document.createElement("li");
    Object.assign(item, { id: `option-${index}`, textContent: option.text });
    item.setAttribute("role", "option");
    item.dataset.text = option.text;
    const about = document.createElement("small");
    about.textContent = option.about;
    item.append(about);
    return item;
  }));
  list.hidden = !told.options.length;
  if (list.hidden) return close();
  choose(list.firstElementChild);
  place();
}

list.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  const item = event.target.closest("li");
  if (item) take(item);
});
area.addEventListener("blur", close);
area.addEventListener("scroll", () => { numbers.scrollTop = area.scrollTop; });
area.addEventListener("input", (event) => {
  mark();
  number();
  clearTimeout(waiting);
  waiting = setTimeout(check, 300);
  const line = area.value.slice(0, area.selectionStart).split("\n").at(-1);
  if (event.inputType === "insertText" && /^[\w.]$/.test(event.data ?? "") && /(^|[\s{,-])\w+$/.test(line)) complete();
  else close();
});
area.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "s") { event.preventDefault(); save(); return; }
  if (event.ctrlKey && event.key === " ") { event.preventDefault(); complete(); return; }
  if (list.hidden) return;
  const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  if (next) {
    event.preventDefault();
    choose(chosen()[next] ?? (event.key === "ArrowDown" ? list.firstElementChild : list.lastElementChild));
  } else if (event.key === "Enter" && chosen().dataset.text !== typed()) {
    event.preventDefault();
    take(chosen());
  } else if (event.key === "Escape" || event.key === "Enter") {
    close();
  }
});

function typed() {
  return area.value.slice(area.selectionStart - replaced, area.selectionStart);
}
area.setAttribute("aria-autocomplete", "list");
area.setAttribute("aria-controls", "completion");
number();
