"use strict";
// Filters and layers work without this script, by style alone; here are the keys, the search, the sorting, copying.
const reader = (() => {
  let current = null;

  // How much of a card is in view below the bar: 1 is whole, or all that fits; below 0, the farther away the less.
  const share = (card) => {
    const bar = Math.max(document.querySelector(".tools").getBoundingClientRect().bottom, 0);
    const { top, bottom, height } = card.getBoundingClientRect();
    return (Math.min(bottom, innerHeight) - Math.max(top, bar)) / Math.max(Math.min(height, innerHeight - bar), 1);
  };

  // The card that the reader is at: the one last gone to while it is in view, else the first that is whole in view.
  const card = (shown) => {
    if (shown.includes(current) && share(current) >= 0.5) return current;
    const shares = shown.map(share);
    const most = Math.max(...shares) - 0.01;
    return shown[shares.findIndex((one) => one >= most)];
  };

  const go = (to) => {
    to.focus({ preventScroll: true });
    to.scrollIntoView({ block: "start" });
  };

  document.addEventListener("focusin", (event) => {
    current = event.target.closest?.(".card") ?? current;
  });
  return { card, go, sees: (one) => share(one) > 0, isAt: (one) => one === current, forget: () => (current = null) };
})();

(() => {
  const cards = [...document.querySelectorAll(".card")];
  const search = document.getElementById("search");
  const empty = document.getElementById("empty");
  const filters = [...document.querySelectorAll("input[name=kind]")];
  const texts = new Map(cards.map((card) => [card, ""]));
  const seen = () => cards.filter((card) => card.offsetParent !== null);

  const refresh = () => {
    const chosen = document.querySelector("input[name=kind]:checked");
    empty?.toggleAttribute("hidden", seen().length > 0 || chosen?.value === "unreadable");
  };

  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    for (const card of cards) {
      if (wanted && !texts.get(card)) {
        const parts = card.querySelectorAll("h3, .name, .suggested, .twins");
        texts.set(card, [...parts].map((part) => part.textContent).join("\n").toLowerCase());
      }
      card.hidden = Boolean(wanted) && !texts.get(card).includes(wanted);
    }
    refresh();
  };

  const go = (step) => {
    const shown = seen();
    if (!shown.length) return;
    const from = reader.card(shown);
    let next = shown.indexOf(from) + step;
    if (!reader.isAt(from)) {
      // The reader scrolled here: first to the head of this card, where that lies in the step's direction.
      const { bottom } = document.querySelector(".tools").getBoundingClientRect();
      const below = from.getBoundingClientRect().top >= Math.max(bottom, 0) - 2;
      if (below === step > 0) next -= step;
    }
    reader.go(shown[Math.min(Math.max(next, 0), shown.length - 1)]);
  };

  const keys = {
    j: () => go(1),
    k: () => go(-1),
    p: () => document.getElementById("t-dots")?.click(),
    b: () => document.getElementById("t-box")?.click(),
    m: () => document.getElementById("t-mask")?.click(),
    h: () => document.getElementById("t-heat")?.click(),
    "/": () => search?.focus(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Escape") {
        search.value = "";
        find();
        search.blur();
      }
      return;
    }
    const filter = /^[1-9]$/.test(event.key) ? filters[Number(event.key) - 1] : null;
    if (filter && !filter.disabled) {
      filter.checked = true;
      filter.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (Object.hasOwn(keys, event.key)) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  for (const filter of filters) {
    filter.addEventListener("change", () => {
      reader.forget();
      refresh();
    });
  }
  search?.addEventListener("input", find);
  document.querySelector(".tools")?.addEventListener("submit", (event) => event.preventDefault());

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C"; // it is selected; some browsers let no page write to the clipboard
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });

  const table = document.querySelector(".classes table");
  table?.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const up = head.getAttribute("aria-sort") === "descending";
    const value = (row) => row.cells[head.cellIndex];
    const compare = (a, b) =>
      a.dataset.value === undefined
        ? a.textContent.localeCompare(b.textContent, undefined, { numeric: true })
        : a.dataset.value - b.dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (up ? 1 : -1));
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  });

  addEventListener("beforeprint", () => document.getElementById("classes")?.setAttribute("open", ""));
})();
