// Sorting and filtering of the scan table. The page is complete without it.
(() => {
  const table = document.getElementById("scans");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => row.cells[i].dataset.key ?? row.cells[i].textContent.trim();
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = head.classList.contains("num");
      const compare = (x, y) => {
        const a = key(x, i), b = key(y, i);
        if (a === "" || b === "") return (a === "") - (b === "");  // nothing known: always last
        const order = number ? parseFloat(a) - parseFloat(b) : a.localeCompare(b, undefined, { numeric: true });
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });

  const panels = new Map([...document.querySelectorAll(".panel")].map((p) => [p.dataset.scan, p]));
  const tools = document.createElement("div");
  tools.className = "tools";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Filter by name or reason";
  search.setAttribute("aria-label", "Filter by name or reason");
  let status = "";
  const apply = () => {
    const words = search.value.toLowerCase();
    for (const row of body.rows) {
      const shown = (!status || row.dataset.status === status) && row.textContent.toLowerCase().includes(words);
      row.hidden = !shown;
      const panel = panels.get(row.dataset.scan);
      if (panel) panel.hidden = !shown;
    }
  };
  const button = (text, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => action(made));
    return made;
  };
  const kinds = [...new Set([...body.rows].map((row) => row.dataset.status))];
  const choices = kinds.map((kind) =>
    button("only " + kind, (self) => {
      status = status === kind ? "" : kind;
      choices.forEach((c) => c.setAttribute("aria-pressed", String(c === self && status !== "")));
      apply();
    }),
  );
  search.addEventListener("input", apply);
  if (kinds.length > 1) tools.append(...choices);
  tools.append(
    button("open all", () => panels.forEach((p) => { p.open = true; })),
    button("close all", () => panels.forEach((p) => { p.open = false; })),
    search,
  );
  table.parentElement.before(tools);
})();
