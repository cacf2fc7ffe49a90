"use strict";
// Keeps the verdicts, also over a reload where the browser allows it, and writes them as review.csv.
(() => {
  const { run, asked, said } = JSON.parse(document.getElementById("images").textContent);
  const cards = [...document.querySelectorAll(".card")];
  const progress = document.getElementById("progress");
  const shelf = `fixaudit review ${run}`;
  let saved = true;

  // right, wrong, "" where nobody can tell; null where nobody has answered yet
  const verdict = (card) => card.querySelector(".ask input:checked")?.value ?? null;
  const given = () => cards.filter((card) => verdict(card) !== null).length;
  const choose = (card, value) => {
    card.querySelector(`.ask input[value="${value}"]`).checked = true;
  };

  const keep = () => {
    progress.textContent = `${given()} of ${cards.length}`;
    const told = Object.fromEntries(asked.map(([id, label], at) => [id, [label, verdict(cards[at])]]));
    try {
      localStorage.setItem(shelf, JSON.stringify(told));
    } catch {
      saved = given() === 0; // some browsers let no page from a file keep anything: leaving it asks first
    }
  };

  const restore = () => {
    try {
      const told = JSON.parse(localStorage.getItem(shelf) ?? "{}");
      asked.forEach(([id, label], at) => {
        const [of, value] = told[id] ?? [];
        if (of === label && value !== null) choose(cards[at], value); // of another label it says nothing
      });
    } catch {
      // nothing was kept
    }
    progress.textContent = `${given()} of ${cards.length}`;
  };

  const answer = (value) => {
    const card = reader.card(cards);
    if (!reader.sees(card)) return reader.go(card); // nobody judges what is off screen
    choose(card, value);
    keep();
    reader.go(cards[cards.indexOf(card) + 1] ?? card);
  };

  const save = () => {
    // A spreadsheet would run a name such as =1+1; whoever reads the file takes the apostrophe away (audit/review.py).
    const harmless = (text) => (/^'*[=+\-@\t\r\n]/.test(text) ? `'${text}` : text);
    const quoted = (text) => `"${harmless(text).replaceAll('"', '""')}"`;
    const rows = [...said, ...asked.map(([id, label], at) => [id, label, verdict(cards[at]) ?? ""])];
    const lines = rows.map((row) => row.map(quoted).join(","));
    const file = new Blob([["image_id,label_name,verdict", ...lines, ""].join("\n")], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = "review.csv";
    link.click();
    URL.revokeObjectURL(link.href);
    saved = true;
  };

  if (!cards.length) return;
  restore();
  const keys = { r: "right", w: "wrong", s: "" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    answer(keys[event.key]);
  });
  document.addEventListener("change", (event) => event.target.closest(".ask") && keep());
  document.getElementById("save").addEventListener("click", save);
  addEventListener("beforeunload", (event) => saved || event.preventDefault());
})();
