"use strict";
(() => {
  const filters = document.querySelector(".filters");
  if (!filters) return;
  const buttons = [...filters.querySelectorAll("button")];
  const cards = [...document.querySelectorAll(".card")];
  const status = document.querySelector(".shown");
  const matches = (card, kind) => kind === "all" || card.dataset.kinds.split(" ").includes(kind);

  const show = (kind) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === kind));
    for (const card of cards) card.hidden = !matches(card, kind);
    const count = cards.filter((card) => !card.hidden).length;
    status.textContent = count ? `${count} shown` : "None of this kind.";
  };

  for (const button of buttons) {
    const count = cards.filter((card) => matches(card, button.dataset.show)).length;
    button.querySelector(".tally").textContent = count;
    button.addEventListener("click", () => {
      show(button.dataset.show);
      history.replaceState(null, "", `#show=${button.dataset.show}`);
    });
  }
  // A link may open the page on one kind: report.html#show=wrong
  const wanted = location.hash.replace("#show=", "");
  show(buttons.some((button) => button.dataset.show === wanted) ? wanted : "all");
  filters.hidden = false;
  // On paper a closed config would be lost.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
