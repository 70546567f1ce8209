"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("js");

  // Light or dark: as the system, until the button is pressed.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();

  // One section at a time, named by the address.
  const sections = all("main > section");
  const show = () => {
    const wanted = sections.find((each) => "#" + each.id === location.hash) || sections[0];
    sections.forEach((each) => each.classList.toggle("shown", each === wanted));
    all("nav a").forEach((link) => {
      const current = link.getAttribute("href") === "#" + wanted.id;
      if (current) {
        link.setAttribute("aria-current", "page");
        const menu = link.parentElement;
        menu.scrollLeft = link.offsetLeft - menu.offsetLeft - 12;
      } else link.removeAttribute("aria-current");
    });
  };
  addEventListener("hashchange", () => { show(); scrollTo(0, 0); });
  show();

  // A click on the title of a column sorts; empty cells come last.
  const key = (row, column) => {
    const cell = row.cells[column];
    if ("v" in cell.dataset) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    return text === "" || text === "-" ? null : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });
  all("table.sortable").forEach((table) => {
    const titles = all("thead th", table);
    titles.forEach((title, column) => title.addEventListener("click", () => {
      const numeric = title.classList.contains("num");
      const before = title.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : numeric;
      titles.forEach((each) => each.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : compare(a, b) * (descending ? -1 : 1)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  });

  // A field filters the rows of a table or the entries of a list: all words must occur.
  all(".filterable").forEach((block) => {
    const field = block.querySelector("input.filter");
    if (!field) return;
    const entries = all("tbody tr, .entry, .card", block);
    const texts = entries.map((each) => each.textContent.toLowerCase());
    const told = field.parentElement.querySelector("output");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      entries.forEach((each, i) => {
        each.hidden = !words.every((word) => texts[i].includes(word));
        shown += !each.hidden;
      });
      all("details", block).forEach((theme) => {
        const found = all(".entry", theme).some((each) => !each.hidden);
        theme.hidden = words.length > 0 && !found;
        theme.open = words.length > 0 && found;
      });
      told.textContent = words.length ? `${shown} of ${entries.length}` : "";
    });
  });

  // One of several views, by a list.
  all(".views").forEach((block) => {
    const views = all(":scope > .view", block);
    const choice = block.querySelector("select");
    const choose = () => views.forEach((view, i) => { view.hidden = i !== Number(choice.value); });
    choice.addEventListener("change", choose);
    choose();
  });
})();
