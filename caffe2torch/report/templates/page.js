// Sorts and filters the table of rows, and walks the strip by arrow keys. Without it the page is whole, only still.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("rows");
  const body = table.tBodies[0];
  const output = byId("shown");
  const entries = Array.from(body.rows, (row, index) => ({
    row, index, shown: true,
    text: `${row.cells[1].textContent} ${row.cells[2].textContent} ${row.cells[3].textContent}`.toLowerCase(),
    keys: new Map(),
  }));
  let order = entries;
  let sorted = "";

  // ---- Filter

  const text = byId("filter-text");
  const selects = Array.from(byId("tools").querySelectorAll("select"), (select) => [select.dataset.key, select]);
  const boxes = Array.from(document.querySelectorAll("#strip .box"));

  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter(([, select]) => select.value !== "");
    let count = 0;
    for (const entry of entries) {
      const shown = words.every((word) => entry.text.includes(word))
        && wanted.every(([name, select]) => entry.row.dataset[name] === select.value);
      if (shown !== entry.shown) {
        entry.row.hidden = !shown;
        boxes[entry.index].classList.toggle("dim", !shown);
        entry.shown = shown;
      }
      count += shown;
    }
    byId("none").hidden = count > 0;
    output.textContent = `${count} of ${entries.length} rows${sorted}`;
  };

  const clear = () => {
    text.value = "";
    for (const [, select] of selects) select.value = "";
    filter();
  };

  text.addEventListener("input", filter);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
  });
  for (const [, select] of selects) select.addEventListener("change", filter);
  byId("filter-clear").addEventListener("click", () => {
    clear();
    text.focus();
  });
  byId("tools").hidden = false;

  // ---- Sort

  const collator = new Intl.Collator("en", { numeric: true });
  const key = (entry, column, kind) => {
    if (!entry.keys.has(column)) {
      const content = entry.row.cells[column].textContent.trim();
      const number = parseFloat(content);
      entry.keys.set(column, kind === "number" ? (Number.isNaN(number) ? -Infinity : number) : content);
    }
    return entry.keys.get(column);
  };
  const sort = (header, column) => {
    const kind = header.dataset.sort;
    const down = header.getAttribute("aria-sort") === "ascending";
    const compare = kind === "number"
      ? (a, b) => Math.sign(key(a, column, kind) - key(b, column, kind)) || 0
      : (a, b) => collator.compare(key(a, column, kind), key(b, column, kind));
    order = [...entries].sort((a, b) => (down ? compare(b, a) : compare(a, b)) || a.index - b.index);
    body.append(...order.map((entry) => entry.row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    sorted = `, by ${header.textContent}, ${down ? "falling" : "rising"}`;
    filter();
  };
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header, column));
    header.append(button);
  });

  // ---- A link leads to what it names, be it filtered out or folded away

  const reveal = () => {
    const target = byId(location.hash.slice(1));
    if (!target) return;
    if (target.hidden) clear();
    const folded = target.closest("details:not([open])");
    if (folded) folded.open = true;
    target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal();
  });
  if (location.hash) reveal();

  // ---- The label of a stage filters by it, and once more by none

  for (const label of document.querySelectorAll("#strip .pick")) {
    const button = document.createElement("button");
    const select = byId("filter-stage");
    button.type = "button";
    button.append(...label.childNodes);
    button.addEventListener("click", () => {
      select.value = select.value === label.dataset.stage ? "" : label.dataset.stage;
      filter();
    });
    label.append(button);
  }

  // ---- The strip is one stop for the Tab key; arrows walk in it

  const columns = Array.from(document.querySelectorAll("#strip .columns > li"), (column) => Array.from(column.querySelectorAll(".box")));
  boxes.forEach((box, index) => { box.tabIndex = index ? -1 : 0; });
  byId("strip").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1], Home: [-Infinity, 0], End: [Infinity, 0] };
    const step = steps[event.key];
    const from = event.target.closest(".box");
    if (!step || !from) return;
    event.preventDefault();
    const x = columns.findIndex((column) => column.includes(from));
    const y = columns[x].indexOf(from);
    const column = columns[Math.min(Math.max(x + step[0], 0), columns.length - 1)];
    const to = column[Math.min(Math.max(y + step[1], 0), column.length - 1)];
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
})();
