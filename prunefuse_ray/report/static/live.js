// The report as it stands, and above it what the run is doing. A fresh report takes the place of the one on the screen
// once it is there whole, at the same height of the page.

const EVERY = 2000; // ms
const at = (id) => document.getElementById(id);
let shown = null; // the version on the screen, or under way there

async function look() {
  try {
    const answer = await fetch("/state");
    const now = await answer.json();
    if (!answer.ok) throw new Error(now.error);
    document.title = `${now.title}: ${now.state}`;
    at("state").textContent = now.state;
    at("words").textContent = now.words;
    at("phases").textContent = now.counts;
    at("share").hidden = now.share === null;
    at("share").value = now.share || 0;
    if (now.version !== shown) bring(now.version);
  } catch (error) {
    at("state").textContent = error instanceof TypeError ? "the command that served this page has ended" : error.message;
    at("words").textContent = "";
    at("share").hidden = true;
  }
  setTimeout(look, EVERY);
}

function bring(version) {
  shown = version;
  for (const late of document.querySelectorAll("iframe.coming")) late.remove();
  const fresh = document.createElement("iframe");
  fresh.className = "coming";
  fresh.title = "report";
  fresh.setAttribute("sandbox", "allow-same-origin"); // no script runs in it; its height on the page can be read
  fresh.onload = () => {
    if (fresh.contentDocument?.contentType !== "text/html") { // it cannot be read just now; the next look tries again
      at("note").textContent = fresh.contentDocument?.body.textContent ?? "";
      fresh.remove();
      if (shown === version) shown = null;
      return;
    }
    const before = document.querySelector("iframe:not(.coming)");
    if (before) fresh.contentWindow.scrollTo(0, before.contentWindow.scrollY);
    fresh.classList.remove("coming");
    before?.remove();
    at("note").hidden = true;
  };
  fresh.src = `/report?version=${encodeURIComponent(version)}`;
  document.querySelector("main").append(fresh);
}

look();
