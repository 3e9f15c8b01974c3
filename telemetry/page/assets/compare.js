// Compare: the same value of several runs in one chart, over steps, hours or the time of day.
"use strict";
async function showComparison(root, runs) {
  const { element, number, count, duration } = tools;
  const CHARTS_OPEN = 30;
  const overviews = (await Promise.all(runs.map((run) => source.overview(run).catch((failure) => {
    tools.say(failure.message);
    return null;
  })))).filter(Boolean);
  window.telemetryBoard?.close();
  const board = new Board(root, ["step", "hours", "time"]);
  root.replaceChildren();

  const rows = overviews.map((one, i) => element("tr", {},
    element("td", {}, element("span", { class: "swatch", id: "swatch-" + i }),
      source.isReport ? element("a", { href: "#" + one.run_id }, one.name) : element("a", { href: "/runs/" + one.run_id }, one.name)),
    element("td", {}, one.state), element("td", { class: "right" }, one.step === null ? "-" : String(one.step)),
    element("td", { class: "right", id: "loss-" + i }), element("td", { class: "right", id: "val-" + i }),
    element("td", { class: "right" }, duration(one.last_s - one.first_s)), element("td", { class: "right" }, count(one.rows))));
  const heads = ["Name", "State", "Step", "Loss", "Validation", "Duration", "Events"];
  root.append(element("h1", {}, `${overviews.length} runs`),
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {},
      ...heads.map((name, i) => element("th", { class: i > 1 ? "right" : "" }, name)))), element("tbody", {}, ...rows))));
  rows.forEach((row, i) => { row.querySelector(".swatch").style.background = chart.COLORS[i % chart.COLORS.length]; });

  const bar = element("div"), body = element("div");
  root.append(element("details", {}, element("summary", {}, "Settings that differ"), differences()), bar, body);
  board.bar(bar);

  function differences() {
    const keys = [...new Set(overviews.flatMap((one) => Object.keys(one.config)))].sort()
      .filter((key) => new Set(overviews.map((one) => one.config[key])).size > 1);
    if (!keys.length) return element("p", {}, "none");
    return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, element("th", {}, ""),
      ...overviews.map((one) => element("th", {}, one.name)))), element("tbody", {}, ...keys.map((key) => element("tr", {}, element("td", {}, key),
      ...overviews.map((one) => element("td", {}, one.config[key] ?? "-")))))));
  }

  // The names of all runs: the loss of each under whatever name it has, then what most runs have.
  const times = new Map();
  for (const one of overviews) {
    for (const entry of one.names) {
      const key = (entry.source.startsWith("hardware:") ? "hardware" : entry.source) + "\t" + entry.name.replace(/^hw\/[^/]+\//, "");
      if (!times.has(key)) times.set(key, new Map());
      if (!times.get(key).has(one.run_id)) times.get(key).set(one.run_id, entry);
    }
  }

  function add(parent, title, entryOf, options = {}) {
    board.add(parent, title, async (view, box) => {
      const parts = await Promise.all(overviews.map(async (one, i) => {
        const entry = entryOf(one);
        if (!entry) return null;
        const [found] = await source.series(one.run_id, [entry], board.ask(one.first_s));
        return { found, line: { run: one.run_id, label: one.name, color: chart.COLORS[i % chart.COLORS.length], startS: one.first_s, restarts: chart.restartsOf(one) } };
      }));
      const there = parts.filter(Boolean);
      await chart.drawLines(box, there.map((part) => part.line), there.map((part) => part.found), view, null);
      return thinnedText(there.map((part) => part.found));
    }, options);
  }

  function section(title, isOpen) {
    const grid = element("div", { class: "grid" });
    body.append(element("details", { open: isOpen, ontoggle: () => board.work() }, element("summary", {}, title), grid));
    return grid;
  }

  const learning = section("Learning", true);
  add(learning, "Loss", (one) => one.loss_name ? { source: "rank0", name: one.loss_name } : null, { wide: true, tall: true });
  const of = (key) => (one) => times.get(key)?.get(one.run_id);
  const main = ["val/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second"].map((name) => "rank0\t" + name);
  for (const key of main) if (times.has(key)) add(learning, key.split("\t")[1], of(key));
  const losses = new Set(overviews.map((one) => "rank0\t" + one.loss_name));
  const rest = [...times.keys()].filter((key) => !main.includes(key) && !losses.has(key));
  for (const [title, keys] of [["Other values", rest.filter((key) => !key.startsWith("hardware"))], ["Hardware", rest.filter((key) => key.startsWith("hardware"))]]) {
    if (!keys.length) continue;
    const grid = section(`${title} (${keys.length})`, keys.length <= CHARTS_OPEN);
    for (const key of keys) add(grid, key.split("\t")[1], of(key));
  }

  overviews.forEach(async (one, i) => {
    const wanted = [one.loss_name || "train/loss", "val/loss"].map((name) => ({ source: "rank0", name }));
    const found = await source.series(one.run_id, wanted, { x: "step", from: null, to: null, points: 8 });
    const last = found.map((each) => each.value.filter((value) => value !== null).at(-1));
    document.getElementById("loss-" + i).textContent = number(last[0]);
    document.getElementById("val-" + i).textContent = number(last[1]);
  });
  board.work();
  return board;
}
