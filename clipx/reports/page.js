"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Light, dark, or what the system says.
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const setTheme = (name) => {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    theme.dataset.now = name;
    theme.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[name];
    theme.setAttribute("aria-label", `colours: ${name}`);
    try { localStorage.setItem("clipx-theme", name); } catch { /* a page from disk may have no storage */ }
  };
  let kept = null;
  try { kept = localStorage.getItem("clipx-theme"); } catch { /* as above */ }
  setTheme(themes.includes(kept) ? kept : "auto");
  theme.addEventListener("click", () => setTheme(themes[(themes.indexOf(theme.dataset.now) + 1) % 3]));

  // Sorting: numbers by value, text by its letters, what is missing always last.
  const keyOf = (unit, column) => {
    const cell = (unit.tagName === "TR" ? unit : unit.rows[0]).cells[column];
    const value = cell.dataset.v ?? cell.textContent.trim();
    if (value === "") return null;
    const number = Number(value);
    return Number.isNaN(number) ? value : number;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });
  };
  const sort = (table, column) => {
    const heads = all("thead th", table);
    const before = heads[column].getAttribute("aria-sort");
    const numeric = heads[column].classList.contains("n");
    const first = numeric && heads[column].dataset.first !== "up" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const way = before === first ? other : first;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", way);
    const blocks = all(":scope > tbody.cell", table);
    const units = blocks.length ? blocks : all(":scope > tbody > tr", table);
    const keyed = units.map((unit, place) => ({ unit, place, key: keyOf(unit, column) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      return (way === "ascending" ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
    });
    const parent = units[0]?.parentNode;
    for (const { unit } of keyed) parent.append(unit);
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) =>
      head.querySelector(".sort")?.addEventListener("click", () => sort(table, column)));
  }

  // Filtering: every word must stand somewhere in the cell's line; a chip narrows to one state.
  const filter = document.getElementById("filter");
  const cells = all("tbody.cell");
  const chips = all(".chip");
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = chips.find((chip) => chip.getAttribute("aria-pressed") === "true").dataset.state;
    let seen = 0;
    for (const cell of cells) {
      const padded = ` ${cell.dataset.search} `;
      const matches = (word) => (word.includes("=") ? padded.includes(` ${word} `) : padded.includes(word));
      const kept = (!state || cell.dataset.state === state) && words.every(matches);
      cell.hidden = !kept;
      seen += kept;
    }
    count.textContent = `${seen} of ${cells.length} cells`;
    nothing.hidden = seen > 0;
  };
  filter.addEventListener("input", show);
  filter.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { filter.value = ""; show(); }
  });
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chips.forEach((each) => each.setAttribute("aria-pressed", String(each === chip)));
      show();
    });
  }
  for (const pick of all(".pick")) {
    pick.addEventListener("click", () => {
      filter.value = `method=${pick.textContent.toLowerCase()}`;
      show();
      document.getElementById("cells").scrollIntoView();
      filter.focus({ preventScroll: true });
    });
  }
  show();

  // A cell's inside is made when it is first opened: configs of thousands of cells would weigh on the page.
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const copyText = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* the old way */ }
    const area = make("textarea", { readonly: "", style: "position:fixed;top:0;left:0;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  const copyButton = (text, what) => {
    const button = make("button", { type: "button", class: "copy", "aria-label": `copy the ${what}` }, "copy");
    button.addEventListener("click", async () => {
      const done = await copyText(text);
      button.textContent = done ? "copied" : "select and copy by hand";
      button.classList.toggle("done", done);
      setTimeout(() => { button.textContent = "copy"; button.classList.remove("done"); }, 1600);
    });
    return button;
  };
  const block = (title, kind, text) =>
    make("section", {}, make("h3", {}, title, copyButton(text, title)), make("pre", { class: kind, tabindex: "0" }, text));
  const shown = (value) => {
    if (Number.isInteger(value)) return String(value);
    return Math.abs(value) < 1e4 ? String(Number(value.toPrecision(5))) : value.toFixed(0);
  };
  const inside = (cell) => {
    const box = make("div", { class: "box" });
    if (cell.error) box.append(block("error", "error", cell.error));
    box.append(block("command", "command", cell.command));
    const names = Object.keys(cell.metrics);
    if (names.length) {
      const list = make("dl", { class: "metrics" });
      for (const name of names) {
        if (name.endsWith("_ci") && names.includes(name.slice(0, -3))) continue;
        const half = cell.metrics[`${name}_ci`];
        const value = shown(cell.metrics[name]) + (half ? ` ± ${Number(half.toPrecision(2))}` : "");
        list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
      }
      box.append(make("section", {}, make("h3", {}, "metrics"), list));
    }
    box.append(block("config", "config", cell.config.map((line) => data.lines[line]).join("\n")));
    const last = make("p", { class: "note" }, `cell ${cell.cell}`);
    if (cell.run) last.append(" · run ", make("a", { href: cell.href }, cell.run));
    box.append(last);
    return box;
  };
  for (const tbody of cells) {
    const button = tbody.querySelector(".open");
    button.addEventListener("click", () => {
      let row = tbody.querySelector(".inside");
      if (!row) {
        const td = make("td", { colspan: tbody.rows[0].cells.length }, inside(data.cells[Number(tbody.dataset.place)]));
        row = make("tr", { class: "inside" }, td);
        row.hidden = true;
        tbody.append(row);
      }
      row.hidden = !row.hidden;
      button.setAttribute("aria-expanded", String(!row.hidden));
    });
  }
  for (const button of all(".copy[data-place]")) {
    const real = copyButton(data.cells[Number(button.dataset.place)].command, "command");
    button.replaceWith(real);
  }
})();
