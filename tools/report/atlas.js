// The atlas. Its data: `views` (what is compared with what), `measures`, `branches` (code → [name, code above]) and
// `languages`; a language has codes, name, other names, facts, x and y on the map if its place is known, and `cells`, by measure and
// view: a list of results [where, base, value, difference, low, high, p, verdict, n].
const data = document.getElementById("data") && JSON.parse(document.getElementById("data").textContent);
if (data && data.languages.length) {
  const [WHERE, BASE, VALUE, CHANGE, LOW, HIGH, P, VERDICT, N] = Array(9).keys();
  const by = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "click") node.addEventListener("click", value);
      else if (value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const number = (measure, value, signed) => {
    if (value === null || value === undefined) return "";
    const text = (value * measure.factor).toFixed(measure.digits);
    return ((signed && value > 0 ? "+" : "") + text).replace("-", "−");
  };
  const people = (count) => {
    for (const [size, name] of [[1e9, "bn"], [1e6, "M"], [1e3, "k"]]) if (count >= size) return `${+(count / size).toPrecision(2)} ${name}`;
    return String(count);
  };
  const chance = (p) => (p ?? null) === null ? "" : p < 1e-4 ? "< 0.0001" : p.toPrecision(2);
  const tidy = (count) => count.toLocaleString("en");
  const SHAPES = {
    win: ["gain", "M0-1.15L1.1.8L-1.1.8z", "▲", "gain", "clear gain"],
    tie: ["tie", "M-.8 0a.8.8 0 1 0 1.6 0a.8.8 0 1 0-1.6 0", "●", "tie", "no clear change"],
    loss: ["loss", "M0 1.15L-1.1-.8L1.1-.8z", "▼", "loss", "clear loss"],
    none: ["none", "M-.65 0a.65.65 0 1 0 1.3 0a.65.65 0 1 0-1.3 0", "○", "untested", "not compared, or too little to test"],
    absent: ["absent", "M-.3 0a.3.3 0 1 0 .6 0a.3.3 0 1 0-.6 0", "·", "", "not measured"],
  };
  const verdict = (cell) => !cell ? "absent" : (cell[P] ?? null) !== null ? cell[VERDICT] : "none";

  let measure = 0, view = 0, branch = null, left = new Set();
  const cell = (row) => row.cells[measure]?.[view]?.[0];
  const below = (row, code) => {
    for (let at = row.branch; at; at = data.branches[at][1]) if (at === code) return true;
    return false;
  };
  const items = data.languages.map((row) => ({row, text: [row.name, ...row.also, ...row.codes].join(" "), data: {
    category: row.category, script: row.script, family: row.family, base: row.seen, mix: row.mixed,
    get benchmark() { return Object.keys(row.cells).map((key) => data.measures[key].title); },
    get verdict() { return SHAPES[verdict(cell(row))][4]; },
  }}));
  const kept = () => items.filter((item) => left.has(item) && (!branch || below(item.row, branch)));

  // Table. Rows far below the window are left out of the layout, which is what takes long, until it is scrolled to them.
  const MORE = 150;
  let most = MORE;
  const limit = () => {
    let count = 0;
    for (const line of body.rows) if (!line.hidden) line.classList.toggle("later", ++count > most);
  };
  const body = by("languages").tBodies[0];
  by("languages").addEventListener("sorted", limit);
  by("list").addEventListener("scroll", () => {
    if (by("list").scrollTop + by("list").clientHeight < by("list").scrollHeight - 600) return;
    most += MORE;
    limit();
  });
  const fill = () => {
    const of = data.measures[measure];
    // Until a column is sorted by, what was measured comes first.
    const order = [...items].sort((a, b) => !cell(a.row) - !cell(b.row));
    body.replaceChildren(...order.map((item) => {
      const {row} = item, found = cell(row), mark = SHAPES[verdict(found)];
      item.line = make("tr", {},
        make("td", {"data-v": row.name}, make("button", {class: "open", type: "button", click: () => open(row)}, row.name), make("small", {}, ` ${row.codes[0]}`)),
        make("td", {class: "text wide"}, row.family), make("td", {class: "text wide"}, row.script),
        make("td", {class: "text wide", "data-v": row.category ? data.categories.indexOf(row.category) : ""}, row.category),
        make("td", {class: "wide", "data-v": row.speakers ?? ""}, row.speakers ? people(row.speakers) : ""),
        make("td", {"data-v": found?.[BASE] ?? ""}, found ? number(of, found[BASE]) : ""),
        make("td", {"data-v": found?.[VALUE] ?? ""}, found ? number(of, found[VALUE]) : ""),
        make("td", {"data-v": found?.[CHANGE] ?? ""}, found ? number(of, found[CHANGE], true) : ""),
        make("td", {class: "text", "data-v": found ? Object.keys(SHAPES).indexOf(verdict(found)) : ""}, ...(found ? [sign(mark)] : [])));
      return item.line;
    }));
    by("languages").dispatchEvent(new Event("refilled"));
  };
  const sign = ([color, , letter, word]) => make("span", {class: `verdict ${color}`}, make("i", {"aria-hidden": "true"}, letter), word);

  // Map: marks keep their size on the screen; the nearest one is found, so that a finger need not hit it.
  const map = by("map"), whole = map.viewBox.baseVal, WIDTH = whole.width, HEIGHT = whole.height;
  let zoom = 1, x = WIDTH / 2, y = HEIGHT / 2, marked = [];
  const unit = () => WIDTH / zoom / (map.clientWidth || WIDTH);
  const draw = () => {
    const w = WIDTH / zoom, h = HEIGHT / zoom, r = unit() * (map.clientWidth < 600 ? 3.2 : 4.6);
    x = Math.min(WIDTH - w / 2, Math.max(w / 2, x));
    y = Math.min(HEIGHT - h / 2, Math.max(h / 2, y));
    map.setAttribute("viewBox", `${x - w / 2} ${y - h / 2} ${w} ${h}`);
    map.classList.toggle("zoomed", zoom > 1);
    // Clear verdicts are drawn last, over the others.
    const order = ["absent", "none", "tie", "loss", "win"];
    marked = kept().filter(({row}) => "x" in row).map(({row}) => [order.indexOf(verdict(cell(row))), row]).sort(([a], [b]) => a - b).map(([, row]) => row);
    by("marks").innerHTML = marked.map((row) => {
      const [color, shape] = SHAPES[verdict(cell(row))];
      return `<path class="${color}" transform="translate(${row.x} ${row.y}) scale(${r.toFixed(3)})" d="${shape}"/>`;
    }).join("");
  };
  const at = (event) => {
    const box = map.getBoundingClientRect(), w = WIDTH / zoom, h = HEIGHT / zoom;
    const px = x - w / 2 + (event.clientX - box.left) / box.width * w, py = y - h / 2 + (event.clientY - box.top) / box.height * h;
    return marked.map((row) => [Math.hypot(row.x - px, row.y - py) / unit(), row]).filter(([distance]) => distance < 14).sort(([a], [b]) => a - b).map(([, row]) => row);
  };
  const brief = (row) => {
    const found = cell(row), of = data.measures[measure];
    return `${row.name} (${row.codes[0]})` + (found ? `: ${number(of, found[VALUE])} ${of.unit}${found[CHANGE] === null ? "" : `, ${number(of, found[CHANGE], true)}`}` : "");
  };
  let held = null, moved = false;
  map.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; moved = false; });
  map.addEventListener("pointermove", (event) => {
    if (held && event.buttons && zoom > 1) {
      const [dx, dy] = [event.clientX - held[0], event.clientY - held[1]];
      if (moved || Math.hypot(dx, dy) > 4) {
        moved = true;
        x -= dx * unit(); y -= dy * unit();
        held = [event.clientX, event.clientY];
        draw();
      }
    } else if (!held) {
      const [row] = at(event);
      by("near").textContent = row ? brief(row) : "\u00a0";
    }
  });
  addEventListener("pointerup", () => { held = null; });
  map.addEventListener("click", (event) => {
    const found = moved ? [] : at(event), box = by("choices");
    box.hidden = found.length < 2;
    box.replaceChildren(...found.slice(0, 12).map((row) => make("button", {type: "button", click: () => open(row)}, row.name)));
    if (found.length === 1) open(found[0]);
  });
  const scale = (factor) => { zoom = factor ? Math.min(24, Math.max(1, zoom * factor)) : 1; draw(); };
  const [more, less, all] = by("zoom").children;
  more.addEventListener("click", () => scale(1.8));
  less.addEventListener("click", () => scale(1 / 1.8));
  all.addEventListener("click", () => scale(0));
  map.addEventListener("keydown", (event) => {
    const step = 60 / zoom, keys = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
    if (event.key in keys) { x += keys[event.key][0]; y += keys[event.key][1]; draw(); }
    else if (event.key === "+" || event.key === "=") scale(1.8);
    else if (event.key === "-") scale(1 / 1.8);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(map);

  // Tree: branches with a single way on are one line. What is inside is made when it is opened.
  const opened = new Set();
  const tree = () => {
    const children = new Map(), leaves = new Map(), size = new Map();
    for (const {row} of kept()) {
      const own = row.branch || "";
      leaves.set(own, [...leaves.get(own) ?? [], row]);
      for (let code = own, from = null; ; from = code, code = data.branches[code][1]) {
        if (from) children.set(code, (children.get(code) ?? new Set()).add(from));
        const sizes = size.get(code) ?? {win: 0, loss: 0, all: 0};
        size.set(code, sizes);
        sizes.all += 1;
        sizes[verdict(cell(row))] += 1;
        if (!code) break;
      }
    }
    const node = (code) => {
      const names = [data.branches[code][0]];
      while (!leaves.has(code) && children.get(code)?.size === 1) { [code] = children.get(code); names.push(data.branches[code][0]); }
      const found = size.get(code), inside = make("ul");
      const tally = ["win", "loss"].filter((key) => found[key]).map((key) => ` ${SHAPES[key][2]}${found[key]}`).join("");
      const box = make("details", {}, make("summary", {}, names.join(" › "), make("small", {}, ` ${found.all}${tally}`)), inside);
      const fillIn = () => {
        if (inside.childElementCount || !box.open) return;
        inside.append(make("li", {}, make("button", {class: "open only", type: "button", click: () => choose(code)}, "only these")), ...list(code));
      };
      box.addEventListener("toggle", () => { opened[box.open ? "add" : "delete"](code); fillIn(); });
      if (opened.has(code)) { box.open = true; fillIn(); }
      return make("li", {}, box);
    };
    const list = (code) => [
      ...[...children.get(code) ?? []].sort((a, b) => size.get(b).all - size.get(a).all || data.branches[a][0].localeCompare(data.branches[b][0])).map(node),
      ...(leaves.get(code) ?? []).map((row) => make("li", {}, make("button", {class: "open", type: "button", click: () => open(row)}, row.name), make("small", {}, ` ${SHAPES[verdict(cell(row))][2]} ${row.codes[0]}`))),
    ];
    by("tree").replaceChildren(...list(""));
  };
  const choose = (code) => {
    branch = code;
    by("branch").hidden = !code;
    if (code) by("branch").replaceChildren(`Branch: ${data.branches[code][0]} `, make("button", {type: "button", click: () => choose(null)}, "show all"));
    if (code) by("branch").lastChild.focus(); else by("filters").querySelector("input").focus();
    refresh();
  };

  // Everything that follows the filters
  const refresh = () => {
    const shown = new Set(kept());
    for (const item of items) item.line.hidden = !shown.has(item);
    most = MORE;
    limit();
    by("filters").querySelector("output").textContent = `${shown.size} of ${items.length}`;
    const away = [...shown].filter(({row}) => !("x" in row));
    by("unplaced").hidden = !away.length;
    by("unplaced").firstChild.textContent = `${away.length} without a known place`;
    by("unplaced").lastChild.replaceChildren(...away.map(({row}) => make("button", {class: "open", type: "button", click: () => open(row)}, row.name)));
    const counts = Object.fromEntries(Object.keys(SHAPES).map((key) => [key, 0]));
    for (const {row} of shown) counts[verdict(cell(row))] += 1;
    by("legend").innerHTML = Object.entries(SHAPES).map(([key, [color, shape, , , words]]) =>
      `<li class="${color}"><svg viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true"><path d="${shape}"/></svg>${words} <span class="note">${counts[key]}</span></li>`).join("");
    by("choices").hidden = true;
    draw();
    tree();
  };

  // One language
  const table = (title, heads, rows) => rows.length ? [make("h3", {}, title), make("div", {class: "scroll"},
    make("table", {}, make("thead", {}, make("tr", {}, ...heads.map(([text, left]) => make("th", left ? {class: "text"} : {}, text)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, place) => make("td", heads[place][1] ? {class: "text"} : {}, value)))))))] : [];
  const results = (row) => data.views.flatMap((title, place) => {
    const lines = Object.entries(row.cells).flatMap(([key, views]) => (views[place] ?? []).map((found, _, all) => {
      const of = data.measures[key], where = all.length > 1 || (row.codes.length > 1 && row.codes.includes(found[WHERE])) ? ` (${found[WHERE]})` : "";
      const what = make("span", {}, `${of.title}${where} `, make("small", {}, of.unit)), [low, high] = [LOW, HIGH].map((end) => number(of, found[end], true));
      return [what, found[N] ? tidy(found[N]) : "", number(of, found[BASE]), number(of, found[VALUE]), number(of, found[CHANGE], true),
        low && `${low} … ${high}`, sign(SHAPES[verdict(found)]), chance(found[P])];
    }));
    return table(title, [["measure", true], ["n"], ["base"], ["value"], ["change"], ["95 % interval"], ["verdict", true], ["p, corrected"]], lines);
  });
  const samples = (row) => row.samples ? [make("h3", {}, "What the model answered"), ...row.samples.map((one) => make("div", {class: "sample"},
    make("p", {class: "muted"}, `${one.benchmark}, ${one.language}${data.views.length > 1 ? `, ${data.views[one.view].split(" against ")[0]}` : ""}`),
    make("p", {}, one.prompt), make("p", {}, make("b", {}, "Answer: "), one.answer || "(nothing)"), make("p", {}, make("b", {}, "Right: "), one.reference)))] : [];
  const open = (row) => {
    const path = [];
    for (let code = row.branch; code; code = data.branches[code][1]) path.unshift(data.branches[code][0]);
    const facts = [["codes", row.codes.join(", ")], ["also", row.also.join(", ")], ["family", path.join(" › ")], ["script", row.script], ["category", row.category],
      ["people who use it", row.speakers ? tidy(row.speakers) : "not known"], ["base", row.seen],
      ["place", "x" in row ? (row.of === row.codes[0].split("_")[0] ? "on the map" : `as ${row.of}`) : "not known"]];
    const mix = Object.entries(row.mix ?? {}).flatMap(([place, parts]) => parts.map((part) =>
      [data.views.length > 1 ? data.views[place].split(" against ")[0] : "", part.kind, part.language, tidy(part.tokens), `${(100 * part.share).toPrecision(3)} %`, part.epochs.toFixed(2)]));
    const [cost] = Object.values(row.tokenizer ?? {});
    const words = {premium: "tokens by those of English, same sentences", low: "from", high: "to", bytes_per_token: "bytes a token", fertility: "tokens a word"};
    by("panel").lastElementChild.replaceChildren(
      make("h2", {id: "panel-name"}, row.name),
      make("dl", {class: "facts"}, ...facts.filter(([, value]) => value).flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)])),
      ...results(row),
      ...(Object.keys(row.cells).length ? [] : [make("p", {class: "absent"}, "Not evaluated.")]),
      ...table("Tokenizer", [["measure", true], ["value"]], Object.entries(cost ?? {}).map(([key, value]) => [words[key] ?? key, value.toFixed(2)])),
      ...table("Mix", [["run", true], ["text", true], ["language or pair", true], ["tokens"], ["share"], ["epochs"]], mix),
      ...samples(row));
    if (!by("panel").open) by("panel").showModal();
    by("panel").scrollTop = 0;
    history.replaceState(null, "", `#${row.codes[0]}`);
    reach();
  };
  by("panel").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  by("panel").addEventListener("click", (event) => { if (event.target === by("panel")) by("panel").close(); });
  const named = () => {
    const code = decodeURIComponent(location.hash.slice(1)), row = code && data.languages.find((one) => one.codes.includes(code));
    if (row) open(row);
  };
  addEventListener("hashchange", named);

  const filters = filterBox(items, [
    ["category", "any category", data.categories], ["script", "any script"], ["family", "any family"],
    ["base", "seen by the base or not"], ["mix", "in the mix or not"], ["benchmark", "measured on anything"],
    ["verdict", "any verdict", Object.values(SHAPES).map(([, , , , words]) => words)],
  ], (found) => { left = found; refresh(); });
  by("filters").replaceWith(filters.box);
  filters.box.id = "filters";
  const again = () => { fill(); filters.update(); };
  for (const [id, options, set] of [["measure", data.measures.map((of) => `${of.title}, ${of.unit}`), (place) => { measure = place; }], ["view", data.views, (place) => { view = place; }]]) {
    by(id).append(...options.map((text, place) => new Option(text, place)));
    by(id).closest("label").hidden = options.length < 2;
    by(id).addEventListener("change", () => { set(+by(id).value); again(); });
  }
  if (!matchMedia("(min-width: 64rem)").matches) by("families").open = false;
  fill();
  filters.update();
  named();
}
