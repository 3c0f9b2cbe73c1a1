/* Tables that sort by a click on a heading, and finding a trial in the list. */
(() => {
  "use strict";
  /** A cell's key: the number that it is of (data-value), or its words; empty if it has none. */
  const keyOf = (cell) => cell.dataset.value ?? cell.textContent.trim();

  /** Entries (key and original place) in order; those without a key last, whichever the direction. */
  function ordered(entries, direction) {
    const known = entries.filter((e) => e.key !== "");
    const numeric = known.every((e) => !Number.isNaN(Number(e.key)));
    const compare = (a, b) =>
      numeric ? Number(a) - Number(b) || 0 : a.localeCompare(b, "en", { numeric: true });
    known.sort((a, b) => direction * compare(a.key, b.key) || a.place - b.place);
    return [...known, ...entries.filter((e) => e.key === "")];
  }

  /** A body's rows in their first order; what stands below a row (class note) goes with it. */
  function bundles(body) {
    const found = [];
    for (const row of body.rows) {
      if (row.classList.contains("note") && found.length) found.at(-1).push(row);
      else if (!row.classList.contains("note")) found.push([row]);
    }
    return found;
  }

  function sortable(table) {
    const headings = [...table.tHead.rows].at(-1).cells;
    const bodies = [...table.tBodies].map((body, place) => ({ body, place, rows: bundles(body) }));
    let sorted = { index: -1, direction: 0 };

    function sort(index, direction) {
      for (const each of bodies) {
        let order = each.rows.map((rows, place) => {
          return { rows, place, key: keyOf(rows[0].cells[index]) };
        });
        if (direction) order = ordered(order, direction);
        each.key = order.length ? order[0].key : "";
        each.body.append(...order.flatMap((entry) => entry.rows));
      }
      const order = direction ? ordered([...bodies], direction) : bodies;
      if (order.length > 1) table.append(...order.map((each) => each.body));
      [...headings].forEach((th, i) => {
        const now = i === index && direction ? (direction > 0 ? "ascending" : "descending") : null;
        if (now) th.setAttribute("aria-sort", now);
        else th.removeAttribute("aria-sort");
      });
      sorted = { index, direction };
    }

    [...headings].forEach((th, index) => {
      if (!th.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const next = { 1: -1, [-1]: 0, 0: 1 };
        sort(index, sorted.index === index ? next[sorted.direction] : 1);
      });
    });
  }

  document.documentElement.classList.add("scripted");
  document.querySelectorAll("table.sortable").forEach(sortable);

  const find = document.getElementById("find");
  if (find) {
    const rows = [...document.querySelectorAll(".trials li")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    find.addEventListener("input", () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        count += !row.hidden;
      });
      const told = `${count} of ${rows.length}`;
      document.getElementById("found").textContent = words.length ? told : "";
    });
  }
})();
