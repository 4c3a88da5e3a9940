// The labeling page. Whatever comes from the pool is set as text or as the source of an image, never as markup.

const at = (id) => document.getElementById(id);
const SIZES = { one: 8, grid: 24 };
const LISTED = 60; // classes shown at a time; the others are found by their names

let name = sessionStorage.getItem("name") || "";
let view = localStorage.getItem("view") === "one" ? "one" : "grid";
let state = null; // what the server last said
let samples = []; // on the screen, each with the label given to it: number (or a list of them), null (not sure) or undefined
let here = 0;
let desk = ""; // which round's samples these are
let queued = 0; // requests that wait for their turn, and the one under way
let undoing = 0; // of these, those that take something back
let trouble = ""; // what failed last, until something is saved again
let found = []; // numbers of the classes that are listed

// --- the server ---

async function ask(path, body) {
  const answer = await fetch(path, body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ desk, name, ...body }),
  });
  const said = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(said.error), { status: answer.status });
  return said;
}

// One after the other, so that "undo" takes back what was given before it.
let last = Promise.resolve();
function inOrder(work) {
  queued += 1;
  last = last.then(work).catch(async (error) => {
    if (error.status === 409) { await look().catch(() => {}); return; }
    trouble = `${error.message || "the page's server does not answer"}. What has no ✓ is not saved: give it again.`;
    say(trouble);
  }).finally(() => { queued -= 1; });
  return last;
}

async function look() {
  let fresh;
  try {
    fresh = await ask(`/state?name=${encodeURIComponent(name)}`);
  } catch (error) {
    if (state?.state === "finished") return; // the command ends then; what the page says of the run stays
    at("state").textContent = error.status === 401 ? error.message : "the command has ended";
    if (!samples.length) say(error.status === 401 ? error.message : "The command that served this page has ended.");
    return;
  }
  take(fresh);
  if (state.desk !== desk) { desk = state.desk; samples = []; here = 0; at("find").value = ""; listClasses(); }
  if (state.state === "asking" && name && open() === 0 && queued === 1) await more();
  draw();
}

function take(said) {
  const before = state;
  state = said;
  if (before && JSON.stringify(before.by_class) !== JSON.stringify(said.by_class)) listClasses();
}

async function more() {
  const said = await ask(`/batch?desk=${encodeURIComponent(desk)}&count=${SIZES[view]}&name=${encodeURIComponent(name)}`);
  samples = said.samples;
  here = 0;
  trouble = "";
  drawSamples();
  at("samples").parentElement.scrollTop = 0;
}

const open = () => samples.filter((one) => one.label === undefined).length;

// --- what people do ---

// Where a label is a set of classes, keys put classes in and take them out; Enter gives the set.
function choose(number) {
  const one = samples[here];
  if (!state.several) { give(number); return; }
  if (!one || one.label !== undefined || undoing) return;
  one.chosen = new Set(one.chosen ?? (one.guess === null ? [] : guessOf(one))); // what is highlighted is switched
  if (!one.chosen.delete(number)) one.chosen.add(number);
  mark(here);
  offer();
}

function accept() {
  const one = samples[here];
  if (one?.chosen) give([...one.chosen].sort((a, b) => a - b));
  else if (one?.guess != null) give("guess");
}

function give(label, which = [here]) {
  const given = which.filter((n) => samples[n]);
  if (!given.length || undoing || open() === 0) return; // what is on the screen is about to change
  const mine = { desk, name }; // as they are now: it may be sent later
  const before = given.map((n) => [samples[n], samples[n].label]);
  const answers = given.map((n) => ({ n: samples[n].n, label: label === "guess" ? guessOf(samples[n]) : label }));
  given.forEach((n, k) => { samples[n].label = answers[k].label; mark(n); });
  onward();
  inOrder(async () => {
    try { take(await ask("/answer", { ...mine, answers })); } catch (error) {
      for (const [one, label_] of before) { one.label = label_; mark(samples.indexOf(one)); }
      throw error;
    }
    trouble = "";
    await settled();
  });
}

async function settled() {
  if (open() === 0 && queued === 1) await more(); // answers that are not there yet would be asked for again
  draw();
}

function skip() {
  const one = samples[here];
  if (!one || one.label !== undefined || undoing) return;
  const mine = { desk, name };
  samples.splice(here, 1);
  here = Math.min(here, Math.max(samples.length - 1, 0));
  drawSamples();
  inOrder(async () => { take(await ask("/skip", { ...mine, n: one.n })); await settled(); });
}

function undo() {
  const mine = { desk, name };
  undoing += 1;
  inOrder(async () => {
    let said;
    try { said = await ask("/undo", mine); } finally { undoing -= 1; }
    take(said);
    if (!said.undone.length) return;
    for (const back of said.undone) {
      const known = samples.findIndex((one) => one.n === back.n);
      if (known < 0) samples.unshift(back); else samples[known].label = back.label;
    }
    here = samples.findIndex((one) => one.n === said.undone[0].n);
    drawSamples();
    draw();
  });
}

function onward() {
  const order = [...samples.keys()].map((k) => (here + 1 + k) % samples.length);
  const next = order.find((n) => samples[n].label === undefined);
  if (next !== undefined) move(next);
}

function move(to) {
  if (to < 0 || to >= samples.length) return;
  at("samples").children[here]?.classList.remove("here");
  here = to;
  const item = at("samples").children[here];
  item?.classList.add("here");
  if (view === "grid") item?.scrollIntoView({ block: "nearest" });
  offer();
}

const guessOf = (one) => {
  const numbers = one.names.map((each) => state.classes.indexOf(each));
  return state.several ? numbers : numbers[0];
};
// Only what is seen: not the others of a batch that is shown one at a time, nor images that are not there (yet).
const guessed = () => [...samples.keys()]
  .filter((n) => (view === "grid" || n === here) && (state.texts || samples[n].seen) && samples[n].label === undefined && samples[n].guess !== null && !samples[n].chosen);
const named = (label) => {
  if (label === null) return "not sure";
  if (!state.several) return state.classes[label];
  return label.length ? label.map((number) => state.classes[number]).join(", ") : "none of them";
};

function columns() {
  const items = [...at("samples").children];
  if (view === "one" || !items.length) return 1;
  return items.filter((item) => item.offsetTop === items[0].offsetTop).length;
}

// Classes that are called by digits have these as keys: 5 gives 5.
const digits = () => Boolean(state?.classes?.every((each) => /^[0-9]$/.test(each)));

const KEYS = {
  ArrowLeft: () => move(here - 1), ArrowRight: () => move(here + 1),
  ArrowUp: () => move(here - columns()), ArrowDown: () => move(here + columns()),
  Enter: accept,
  n: () => { if (state.several) give([]); },
  a: () => give("guess", guessed()),
  0: () => give(null), "?": () => give(null), s: skip, u: undo, v: turn, Backspace: undo,
  "/": () => { if (!at("find").hidden) at("find").focus(); },
};

document.addEventListener("keydown", (event) => {
  if (at("hello").open || (event.altKey || event.metaKey)) return;
  // A key that is held down gives nothing: it would go through samples that nobody has looked at.
  if (event.isComposing) return;
  if (event.repeat && event.target !== at("find") && !event.key.startsWith("Arrow")) {
    if (event.key === "Enter") event.preventDefault(); // it would press a button again
    return;
  }
  if (event.ctrlKey) { // in the search box it takes back what was typed
    if (event.key === "z" && event.target !== at("find")) { event.preventDefault(); undo(); }
    return;
  }
  if (event.target === at("find")) {
    if (event.key === "Enter" && !event.repeat && found.length && at("find").value.trim()) { choose(found[0]); closeFind(); }
    if (event.key === "Escape") closeFind();
    return;
  }
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return; // it is pressed
  if (state?.state !== "asking" && event.key !== "u") return;
  const digit = /^[0-9]$/.test(event.key) ? event.key : "";
  const meant = digits() ? found.find((n) => state.classes[n] === digit) : found[Number(digit) - 1];
  if (digit && meant !== undefined) choose(meant);
  else if (KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
    KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]();
  } else return;
  event.preventDefault();
});

// A button that was clicked with the pointer would keep the next Enter for itself.
document.addEventListener("click", (event) => { if (event.detail) event.target.closest("button")?.blur(); });

function closeFind() { at("find").value = ""; at("find").blur(); listClasses(); }

function turn() {
  view = view === "one" ? "grid" : "one";
  localStorage.setItem("view", view);
  drawSamples();
  draw();
}

// --- what they see ---

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawSamples() {
  const list = at("samples");
  list.className = `${view} ${state.texts ? "texts" : ""}`;
  list.replaceChildren(...samples.map((one, n) => {
    const item = make("li", n === here ? "here" : "");
    if (state.texts) item.append(make("div", "text", one.text));
    else {
      const image = make("img");
      image.alt = "";
      image.addEventListener("load", () => {
        image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= 96);
        one.seen = true;
        offer();
      });
      image.addEventListener("error", () => image.replaceWith(make("div", "broken", "cannot be shown")));
      image.src = `/image?desk=${encodeURIComponent(desk)}&n=${one.n}`;
      item.append(image);
    }
    item.append(make("div", "caption"));
    item.addEventListener("click", () => move(n));
    return item;
  }));
  samples.forEach((_, n) => mark(n));
  offer();
}

function mark(n) {
  const item = at("samples").children[n];
  if (!item) return;
  const one = samples[n];
  item.classList.toggle("given", one.label !== undefined);
  const guess = state.several && one.guess !== null && !one.names.length ? "none of them" : one.guess;
  const said = one.label !== undefined ? [make("b", "", named(one.label))]
    : one.chosen ? [make("span", "guess", named([...one.chosen].sort((a, b) => a - b)))]
      : one.guess === null ? [] : [make("span", "guess", `${guess}? ${Math.round(100 * one.probability)} %`)];
  const id = make("bdi", "id", one.id);
  id.title = one.id;
  item.lastElementChild.replaceChildren(...said, id);
}

function offer() {
  const one = samples[here];
  const guesses = samples.some((each) => each.guess !== null);
  at("all").hidden = !guesses || view === "one";
  at("accept").hidden = !guesses && !state?.several;
  at("none").hidden = !state?.several;
  at("acceptname").textContent = one?.chosen ? "these are right" : "the guess is right";
  at("keys").textContent = state?.several ? "add or remove a class" : "give the class";
  at("accept").disabled = !one || (one.guess === null && !one.chosen);
  at("all").disabled = guessed().length === 0;
  for (const button of at("classes").querySelectorAll("button")) {
    const number = Number(button.dataset.number);
    const shown = one?.chosen ? one.chosen.has(number) : Boolean(one?.names?.includes(state.classes[number]));
    button.classList.toggle("guessed", shown);
  }
}

function listClasses() {
  if (!state?.classes) { at("classes").replaceChildren(); return; }
  const wanted = at("find").value.trim().toLowerCase();
  found = [...state.classes.keys()].filter((n) => state.classes[n].toLowerCase().includes(wanted));
  if (wanted) { // the class of this name first, then those that begin so
    const place = (name_) => (name_ === wanted ? 0 : name_.startsWith(wanted) ? 1 : 2);
    found.sort((a, b) => place(state.classes[a].toLowerCase()) - place(state.classes[b].toLowerCase()));
  }
  at("find").hidden = state.classes.length <= 9;
  const focused = document.activeElement?.dataset?.number;
  at("classes").replaceChildren(...found.slice(0, LISTED).map((number, k) => {
    const item = make("li");
    const button = make("button");
    button.dataset.number = number;
    if (digits()) button.append(make("kbd", "", state.classes[number]));
    else if (k < 9) button.append(make("kbd", "", String(k + 1)));
    button.append(make("span", "name", state.classes[number]), make("span", "n", state.by_class?.[number] || ""));
    button.addEventListener("click", () => choose(number));
    item.append(button);
    return item;
  }));
  if (focused !== undefined) at("classes").querySelector(`button[data-number="${focused}"]`)?.focus();
  at("unsure").querySelector("kbd").textContent = digits() ? "?" : "0";
  at("first").textContent = digits() ? "0" : "1";
  if (found.length > LISTED) at("classes").append(make("li", "muted small", `… and ${found.length - LISTED} more`));
  offer();
}

function say(text, button) {
  at("message").replaceChildren(text);
  if (button) at("message").append(make("br"), button);
  at("message").hidden = !text;
}

const WORDS = { running: "the run is at work", stopped: "the run has stopped", finished: "the run is finished" };

function draw() {
  const asking = state.state === "asking";
  document.title = `${state.title}: labels`;
  at("title").textContent = state.title;
  at("round").textContent = state.round === undefined ? "" : `round ${state.round}`;
  at("state").textContent = asking ? "" : WORDS[state.state];
  at("state").className = `state ${state.state === "finished" ? "done" : ""}`;
  at("who").textContent = name;
  at("viewname").textContent = view === "one" ? "several at once" : "one at a time";
  const total = state.total || 0;
  at("bar").style.width = total ? `${(100 * state.done) / total}%` : "0";
  const twice = state.wanted > 1 ? `, ${state.wanted} people each` : "";
  at("count").textContent = total
    ? `${state.done} of ${total} done${twice}` + (state.mine ? `, ${state.mine} by you` : "")
      + (state.unsure ? ` (${state.unsure} not sure)` : "")
    : "";
  at("people").textContent = (state.people || []).filter((one) => one.name !== name)
    .map((one) => `${one.name}: ${one.labels}`).join(", ");
  at("agreement").textContent = state.both
    ? `${state.alike} of ${state.both} labeled twice or more agree (${Math.round((100 * state.alike) / state.both)} %)` : "";
  at("undo").disabled = !state.mine;
  at("samples").hidden = !asking || !samples.length;
  document.querySelector("aside").hidden = !asking;
  document.body.classList.toggle("alone", !asking);
  if (asking) {
    const rest = total - state.done;
    say(!name ? "" : trouble ? trouble : samples.length ? state.message : rest
      ? `Nothing is left for you here. ${rest} ${rest === 1 ? "sample waits" : "samples wait"} for somebody else's label.\n${state.message}`
      : `Every sample has its label. The run goes on in a moment; U takes the last one back.\n${state.message}`);
  } else if (state.state === "stopped") {
    const again = make("button", "primary", "Start it again");
    again.addEventListener("click", () => inOrder(async () => { await ask("/again", {}); await look(); }));
    say(state.message, again);
  } else say(state.message);
}

// --- begin ---

function hello() {
  at("name").value = name || localStorage.getItem("name") || "";
  at("hello").showModal();
  at("name").select();
}

at("hello").addEventListener("cancel", () => { at("name").value = name; });
at("hello").addEventListener("close", () => {
  document.activeElement?.blur(); // the dialog gave the focus back to the button with the name
  const before = name;
  name = at("name").value.trim().replace(/\s+/g, " ") || name;
  if (!name) { hello(); return; }
  if (name === before && samples.length) return;
  sessionStorage.setItem("name", name);
  localStorage.setItem("name", name);
  samples = [];
  inOrder(look);
});
at("who").addEventListener("click", hello);
at("accept").addEventListener("click", accept);
at("none").addEventListener("click", KEYS.n);
at("all").addEventListener("click", KEYS.a);
at("unsure").addEventListener("click", KEYS[0]);
at("skip").addEventListener("click", skip);
at("undo").addEventListener("click", undo);
at("view").addEventListener("click", turn);
at("find").addEventListener("input", listClasses);
await inOrder(look);
if (!name) hello();
setInterval(() => { if (!queued) inOrder(look); }, 2000);
