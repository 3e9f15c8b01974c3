// Run: one run, live while it trains.
"use strict";
async function showRun(root, run) {
  const { element, number, count, duration, moment } = tools;
  const POLL_MS = 3000, GRID_REST_S = 15, OTHERS_OPEN = 24;
  let overview = await source.overview(run);
  window.telemetryBoard?.close();
  const board = new Board(root, overview.step === null ? ["time", "hours"] : ["step", "time", "hours"]);
  root.replaceChildren();
  const head = element("div"), bar = element("div"), body = element("div");
  root.append(head, bar, body);
  board.bar(bar);

  const linesOf = (entries) => entries.map((entry, i) => ({
    ...entry, run, label: entry.source === "rank0" || entry.source.startsWith("hardware:") ? entry.name : `${entry.name} (${entry.source})`,
    color: chart.COLORS[i % chart.COLORS.length], startS: overview.first_s, restarts: chart.restartsOf(overview),
  }));

  function addLines(parent, { title, entries, isLoss }) {
    board.add(parent, title, async (view, box) => {
      const lines = linesOf(entries);
      const found = await source.series(run, entries, board.ask(overview.first_s));
      await chart.drawLines(box, lines, found, view, overview, isLoss);
      return thinnedText(found);
    }, { wide: isLoss, tall: isLoss, words: entries.map((entry) => entry.name).join(" ") });
  }

  function addGrid(parent, title, load, isHistogram) {
    board.add(parent, title, async (view, box) => {
      const grid = await load();
      await chart.drawGrid(box, grid, view, overview.first_s, isHistogram);
      return grid.steps_each > 1 ? `each column is the mean of ${grid.steps_each} recorded steps` : `${grid.step.length} recorded steps`;
    }, { tall: true, restS: GRID_REST_S });
  }

  function section(title, isOpen = true) {
    const grid = element("div", { class: "grid" });
    const made = element("details", { open: isOpen, ontoggle: () => board.work() }, element("summary", {}, title), grid);
    body.append(made);
    return grid;
  }

  function addCharts() {
    const planned = plan.of(overview);
    board.cards.length = 0;
    body.replaceChildren();
    if (planned.learning.length) planned.learning.reduce((grid, one) => (addLines(grid, one), grid), section("Learning"));
    addMany("Quantization of the whole model", planned.quantization, true);
    if (planned.layers.length) {
      const grid = section("Quantization and time by layer");
      for (const metric of planned.layers) addGrid(grid, metric, () => source.layers(run, metric), false);
    }
    if (planned.histograms.length) {
      const grid = section("Histograms");
      for (const name of planned.histograms) addGrid(grid, name, () => source.histogram(run, name), true);
    }
    if (planned.speed.length) planned.speed.reduce((grid, one) => (addLines(grid, one), grid), section("Speed"));
    if (planned.hardware.length) planned.hardware.reduce((grid, one) => (addLines(grid, one), grid), section("Hardware"));
    addMany("Other values", planned.others);
    addMany("More of the hardware", planned.moreHardware, false);
    body.append(logOf());
  }

  function addMany(title, charts, isOpen = charts.length <= OTHERS_OPEN) {
    if (!charts.length) return;
    const grid = section(`${title} (${charts.length})`, isOpen);
    for (const one of charts) addLines(grid, one);
  }

  function figure(value, text) {
    return element("li", {}, element("b", {}, value), element("span", {}, text));
  }

  let latest = [], spent = null, spentAt = 0;
  async function readLatest() {
    const wanted = [overview.loss_name, "val/loss", "train/tokens_per_second"].filter(Boolean).map((name) => ({ source: "rank0", name }));
    latest = await source.series(run, wanted, { x: "step", from: null, to: null, points: 8 });
    drawHead();
  }

  // It takes the longest to compute: asked for when the charts on the screen are drawn.
  async function readSpent() {
    if (Date.now() - spentAt < GRID_REST_S * 1000) return;
    spentAt = Date.now();
    await board.idle();
    try {
      spent = await source.goodput(run);
      drawHead();
    } catch (failure) {
      tools.say(failure.message);
    }
  }

  function drawHead() {
    const isAboutOpen = head.querySelector("details")?.open;
    const end = overview.state === "running" ? overview.now_s : overview.last_s;
    const last = (name) => latest.find((one) => one.name === name)?.value.filter((value) => value !== null).at(-1);
    const steps = overview.total_steps ? `step of ${count(overview.total_steps)}` : "step";
    const facts = [["Run", run], ["Project", overview.project], ["Host", overview.host], ["Started", moment(overview.first_s)],
      ["Sessions", String(overview.sessions.filter((one) => one.source === "rank0").length)], ["Notes", overview.notes]];
    const open = overview.marks.filter((mark) => mark.kind === "alert" && mark.end_wall_s === null && overview.state === "running");
    head.replaceChildren(
      element("div", { class: "bar" }, element("h1", {}, overview.name),
        element("span", { class: "state " + ({ running: "at-work", silent: "silent", failed: "failed", lost: "lost" }[overview.state] || "ended") }, overview.state),
        ...overview.tags.map((tag) => element("span", { class: "tag", title: tag }, tag))),
      ...open.map((mark) => element("p", { class: "note level-" + mark.level }, mark.text)),
      element("ul", { class: "figures" }, figure(overview.step === null ? "-" : String(overview.step), steps),
        figure(number(last(overview.loss_name)), tools.shown(overview.loss_name || "loss")), figure(number(last("val/loss")), "validation"),
        figure(count(last("train/tokens_per_second")), "tokens/s"), figure(duration(end - overview.first_s), "duration"),
        figure(overview.texts["train/training_stage"] || "-", "stage"), figure(count(overview.rows), "events")),
      ...goodputOf(spent),
      element("details", { open: isAboutOpen }, element("summary", {}, "About this run"),
        element("dl", { class: "facts" }, ...facts.filter(([, value]) => value).flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]),
          ...Object.entries(overview.config).flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]))));
  }

  function logOf() {
    const rows = overview.marks.slice(-500).reverse().map((mark) => element("tr", {},
      element("td", { class: "when" }, moment(mark.wall_s)), element("td", {}, mark.step === null ? "" : String(mark.step)),
      element("td", { class: "level-" + mark.level }, mark.kind), element("td", {}, mark.text + (mark.end_wall_s && mark.kind === "alert" ? ` (for ${duration(mark.end_wall_s - mark.wall_s)})` : ""))));
    const made = element("details", { open: true, id: "log" }, element("summary", {}, `What happened (${overview.marks.length})`),
      element("div", { class: "log" }, element("table", {}, element("tbody", {}, ...rows))));
    return made;
  }

  drawHead();
  addCharts();
  const firstLatest = readLatest();
  await firstLatest;
  readSpent();
  if (source.isReport) return board;

  let isPaused = false, timer = 0;
  const namesOf = () => JSON.stringify([overview.names, overview.layer_metrics, overview.histograms]);
  async function poll() {
    clearTimeout(timer);
    if (!isPaused && !document.hidden) {
      try {
        const fresh = await source.overview(run);
        const names = namesOf(), has = fresh.rows !== overview.rows || fresh.state !== overview.state;
        overview = fresh;
        if (has) {
          await readLatest();
          readSpent();
          if (names !== namesOf()) addCharts();
          else document.getElementById("log")?.replaceWith(logOf());
          board.refresh();
        }
        tools.say(overview.state === "running" ? "live" : "");
      } catch (failure) {
        tools.say("no answer: " + failure.message);
      }
    }
    timer = setTimeout(poll, POLL_MS);
  }
  tools.key("l", "stop or go on with live values", () => {
    isPaused = !isPaused;
    tools.say(isPaused ? "stopped (l: go on)" : "live");
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  timer = setTimeout(poll, POLL_MS);
  return board;
}

// Where the time of a run went: a bar of shares, and the same in words.
function goodputOf(spent) {
  const { element, duration } = tools;
  if (!spent || !spent.lines.length) return [];
  const COLORS = { training: "#2ca05a", evaluation: "#2f7ed8", checkpoint: "#17a2b8", startup: "#9467bd",
    restart: "#d99a00", lost_work: "#e4572e", stalled: "#c2185b", unknown: "#8a929b" };
  const shares = Object.entries(spent.ratios).filter(([, ratio]) => ratio >= 0.0005);
  const bar = element("div", { class: "share", role: "img", "aria-label": spent.lines[0] });
  const list = element("p", { class: "said" });
  for (const [cause, ratio] of shares) {
    const part = element("span", { title: `${cause} ${(100 * ratio).toFixed(1)} %` });
    part.style.width = `${100 * ratio}%`;
    part.style.background = COLORS[cause] || COLORS.unknown;
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = part.style.background;
    bar.append(part);
    list.append(swatch, `${cause.replace("_", " ")} ${(100 * ratio).toFixed(1)} % (${duration(spent.seconds[cause])})   `);
  }
  return [element("section", { class: "goodput", "aria-label": "Where the time went" },
    element("h3", {}, "Where the time went"), bar, list, ...spent.lines.slice(1).map((line) => element("p", { class: "said" }, line)))];
}
