"use strict"; // the search of report.html
const MOST = 100;
const at = (id) => document.getElementById(id);
const words = at("words"), found = at("found"), hits = at("hits");
const cards = [...document.querySelectorAll(".card")];
const texts = JSON.parse(at("texts").textContent);
const rows = [
  ...cards.map((card) => [
    card.querySelector("div").textContent.toLowerCase(),
    () => card.cloneNode(true),
  ]),
  ...texts.map(([name, link, text]) => [
    `${name}\n${text}`.toLowerCase(),
    () => cardOf(name, link, text),
  ]),
];
const covered = found.textContent;

function cardOf(name, link, text) {
  const made = (kind, inside) => {
    const element = document.createElement(kind);
    element.append(inside);
    return element;
  };
  const to = made("a", made("bdi", name));
  if (link) to.href = link;
  const says = made("p", text);
  says.dir = "auto";
  const inner = made("div", made("h3", to));
  inner.append(says);
  const card = made("article", inner);
  card.className = "card";
  return card;
}

function search() {
  const wanted = words.value.trim().toLowerCase();
  for (const section of document.querySelectorAll("section.rows")) section.hidden = wanted !== "";
  hits.hidden = wanted === "";
  const matches = wanted ? rows.filter(([text]) => text.includes(wanted)) : [];
  hits.replaceChildren(...matches.slice(0, MOST).map(([, card]) => card()));
  const part = matches.length > MOST ? ` The first ${MOST} are shown.` : "";
  const count = matches.length.toLocaleString("en");
  found.textContent = wanted ? `${count} found. ${covered}${part}` : covered;
}

words.addEventListener("input", search);
document.querySelector("search").hidden = false;
search();  // a page that was reloaded keeps what was typed
