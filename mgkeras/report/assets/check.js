"use strict";
{
  const AT_ONCE = 24;
  const cards = [...document.querySelectorAll(".card")];
  const [search, state, fact, outlines, back, next, where] =
    ["search", "state", "fact", "outlines", "back", "next", "where"].map((id) => document.getElementById(id));
  let first = 0;

  const wanted = (card) =>
    card.dataset.name.toLowerCase().includes(search.value.trim().toLowerCase()) &&
    (!state.value || card.classList.contains("error") || (state.value === "bad" && card.classList.contains("warning"))) &&
    (!fact.value || card.dataset.facts.includes("|" + fact.value + "|"));

  const show = () => {
    const found = cards.filter(wanted);
    first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / AT_ONCE) * AT_ONCE));
    const shown = new Set(found.slice(first, first + AT_ONCE));
    for (const card of cards) card.hidden = !shown.has(card);
    back.disabled = first === 0;
    next.disabled = first + AT_ONCE >= found.length;
    where.textContent = found.length ? `${first + 1}–${first + shown.size} of ${found.length}` : "none";
  };
  const turn = (pages) => {
    const button = pages < 0 ? back : next;
    if (button.disabled) return;
    first += pages * AT_ONCE;
    show();
    scrollTo(0, 0);
  };

  for (const control of [search, state, fact]) {
    control.addEventListener("input", () => { first = 0; show(); });
  }
  outlines.addEventListener("input", () => document.body.classList.toggle("plain", !outlines.checked));
  back.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("main").addEventListener("click", (event) => {
    const strip = event.target.closest(".strip");
    if (strip) strip.closest(".card").classList.toggle("large");
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
    if (event.key === "m") outlines.click();
  });
  document.querySelector(".controls").hidden = false;
  show();
}
