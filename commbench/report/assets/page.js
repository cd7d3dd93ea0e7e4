(() => {
  "use strict";
  const STEP = 200; // rows that are added at once
  const read = (node) => JSON.parse(node.textContent);

  // Tables: rows are made of text nodes, so that nothing of a run is markup.
  const shown = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size >= 1e15 || (size > 0 && size < 1e-4)) return value.toPrecision(4);
    const [whole, part] = String(value).split(".");
    return whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") + (part ? "." + part : "");
  };
  const table = (box) => {
    const data = read(box.querySelector("script.rows"));
    const body = box.querySelector("tbody"), scroll = box.querySelector(".scroll");
    const text = (column, row) => column.numbers ? shown(column.numbers[row]) : column.texts[column.places[row]] ?? "";
    const all = Array.from({ length: data.rows }, (_, row) => row);
    let order = all, drawn = body.rows.length, count = null;
    const add = (upTo) => {
      const part = document.createDocumentFragment();
      for (; drawn < Math.min(upTo, order.length); drawn++) {
        const line = document.createElement("tr");
        for (const column of data.columns) {
          const cell = document.createElement("td");
          cell.textContent = text(column, order[drawn]);
          if (column.numbers) cell.className = "n";
          line.append(cell);
        }
        part.append(line);
      }
      body.append(part);
    };
    const draw = () => {
      body.replaceChildren();
      drawn = 0;
      add(STEP);
      if (count) count.textContent = order.length === data.rows ? `${data.rows} ${data.name}` :
        `${order.length} of ${data.rows} ${data.name}`;
    };
    const key = (column) => {
      if (column.numbers) return (row) => column.numbers[row];
      if (column.keys) return (row) => column.keys[column.places[row]];
      const place = new Map(column.texts.map((one, at) => [at, one]).sort((a, b) => a[1].localeCompare(b[1], "en",
        { numeric: true })).map(([at], rank) => [at, rank]));
      return (row) => place.get(column.places[row]);
    };
    let sorted = -1, direction = 1, words = "";
    const arrange = () => {
      order = all;
      if (words) {
        const wanted = words.toLowerCase().split(/\s+/);
        order = order.filter((row) => {
          const line = data.columns.map((column) => text(column, row)).join("\t").toLowerCase();
          return wanted.every((word) => line.includes(word));
        });
      }
      if (sorted >= 0) {
        const of = key(data.columns[sorted]);
        order = [...order].sort((a, b) => {
          const [one, two] = [of(a), of(b)];
          if (one == null || two == null) return (one == null) - (two == null) || a - b; // nothing is last
          return direction * (one < two ? -1 : one > two ? 1 : 0) || a - b;
        });
      }
      draw();
    };
    box.querySelectorAll("th button").forEach((button, at) => button.addEventListener("click", () => {
      direction = sorted === at ? -direction : 1;
      sorted = at;
      box.querySelectorAll("th").forEach((head, place) => {
        if (place === at) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      arrange();
      scroll.scrollTop = 0;
    }));
    scroll.addEventListener("scroll", () => {
      if (scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 400) add(drawn + STEP);
    }, { passive: true });
    if (data.rows > 12) {
      const tools = document.createElement("div"), input = document.createElement("input");
      tools.className = "tools";
      input.type = "search";
      input.placeholder = "filter, e.g. bruck 64 KiB";
      input.setAttribute("aria-label", `filter ${data.name}`);
      count = document.createElement("span");
      count.textContent = `${data.rows} ${data.name}`;
      let wait = 0;
      input.addEventListener("input", () => {
        clearTimeout(wait);
        wait = setTimeout(() => { words = input.value.trim(); arrange(); }, 120);
      });
      tools.append(input, count);
      box.prepend(tools);
    }
  };
  document.querySelectorAll(".table").forEach(table);

  // Commands: a button to copy them.
  document.querySelectorAll(".command").forEach((box) => {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1200);
    });
    box.append(button);
  });

  // Charts, one after the other; those in a folded part when it is opened. Colours of text and lines are CSS.
  const font = getComputedStyle(document.body).fontFamily;
  const axis = { labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, labelPadding: 5 };
  const config = {
    font, background: "transparent", view: { stroke: null }, axis, rule: { color: "#7d8590" },
    line: { strokeCap: "round", strokeJoin: "round" },
  };
  const panels = [...document.querySelectorAll(".panel")];
  const draw = async (panel) => {
    if (panel.dataset.drawn) return;
    panel.dataset.drawn = "1";
    const spec = read(panel.nextElementSibling);
    if (!window.vegaEmbed) {
      panel.textContent = "Charts are left out: this copy of commbench has no library that draws them.";
      return;
    }
    try {
      await window.vegaEmbed(panel, spec, { actions: false, renderer: "svg", logLevel: 1, config, tooltip: { theme: "custom" } });
    } catch (error) {
      panel.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  };
  let drawing = null;
  const all = async () => {
    for (const panel of panels) {
      if (!panel.offsetParent) continue; // folded away
      await draw(panel);
      await new Promise((next) => setTimeout(next)); // the page answers meanwhile
    }
    document.documentElement.dataset.drawn = "1";
  };
  const rest = () => { drawing = (drawing || Promise.resolve()).then(all); };
  setTimeout(rest);
  document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", rest));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  document.documentElement.dataset.ready = "1";
})();
