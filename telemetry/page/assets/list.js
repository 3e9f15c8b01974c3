// List: the table of runs, sorted, searched and kept up to date.
"use strict";
(() => {
  const table = document.getElementById("runs");
  if (!table || source.isReport) return;
  const { element, number, count, duration, moment } = tools;
  const POLL_MS = 3000, COMPARED_MAX = 20;
  const search = document.getElementById("search");
  const compare = document.getElementById("compare");
  const chosen = new Set();
  let runs = [], sort = { name: "started_s", down: true }, at = -1, timer = 0;

  function stateClass(run) {
    return "state " + ({ running: "at-work", silent: "silent", failed: "failed", lost: "lost" }[run.state] || "ended");
  }

  function row(run) {
    const box = element("input", {
      type: "checkbox", "aria-label": "Compare " + run.name, onchange: () => choose(run.run_id, box.checked),
    });
    box.checked = chosen.has(run.run_id);
    const right = (label, text) => element("td", { class: "right", "data-label": label }, text);
    return element("tr", { "data-run": run.run_id },
      element("td", { class: "pick" }, box),
      element("td", { class: "is" }, element("span", { class: stateClass(run) }, run.state),
        run.alerts ? element("span", { class: "alerts" }, ` ${run.alerts} alert${run.alerts > 1 ? "s" : ""}`) : null),
      element("td", {}, element("a", { href: "/runs/" + run.run_id }, run.name), " ",
        element("span", { class: "dim" }, run.project),
        run.problem ? element("span", { class: "problem" }, " " + run.problem) : null),
      right("step", run.step === null ? "-" : String(run.step)),
      right("loss", number(run.loss)), right("validation", number(run.val_loss)),
      right("for", duration(run.duration_s)),
      element("td", { class: "when" }, moment(run.started_s)), element("td", {}, run.host),
      element("td", {}, ...run.tags.flatMap((tag) => [element("span", { class: "tag", title: tag }, tag), " "])),
      right("events", count(run.rows)));
  }

  function matches(run) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = [run.name, run.run_id, run.project, run.host, run.state, run.notes, ...run.tags].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  function order(one, other) {
    const [a, b] = [one[sort.name], other[sort.name]];
    if (a === null || b === null) return (a === null) - (b === null);
    const less = typeof a === "string" ? a.localeCompare(b) : a - b;
    return sort.down ? -less : less;
  }

  function draw() {
    const shown = runs.filter(matches).sort(order);
    table.hidden = !runs.length;
    document.getElementById("empty")?.toggleAttribute("hidden", runs.length > 0);
    table.tBodies[0].replaceChildren(...shown.map(row));
    for (const head of table.tHead.rows[0].cells) {
      if (!head.dataset.sort) continue;
      const is = head.dataset.sort === sort.name;
      head.setAttribute("aria-sort", is ? (sort.down ? "descending" : "ascending") : "none");
      head.querySelector("span").textContent = is ? (sort.down ? " ▾" : " ▴") : "";
    }
    mark(Math.min(at, shown.length - 1));
  }

  function choose(run, is) {
    if (is) chosen.add(run); else chosen.delete(run);
    compare.disabled = chosen.size < 2 || chosen.size > COMPARED_MAX;
    compare.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
    compare.title = chosen.size > COMPARED_MAX ? `at most ${COMPARED_MAX} runs` : "two to twenty runs (c)";
  }

  function go() {
    if (compare.disabled) return;
    location.href = "/compare?" + [...chosen].map((run) => "run=" + encodeURIComponent(run)).join("&");
  }

  function mark(index) {
    const rows = [...table.tBodies[0].rows];
    rows.forEach((each, i) => each.classList.toggle("at", i === index));
    at = index;
  }
  function move(by) {
    const rows = table.tBodies[0].rows;
    if (!rows.length) return;
    mark(Math.max(0, Math.min(rows.length - 1, at + by)));
    rows[at].scrollIntoView({ block: "nearest" });
  }

  async function poll() {
    clearTimeout(timer);
    let wait = POLL_MS;
    try {
      const answer = await source.ask("/api/runs");
      runs = answer.runs;
      tools.say(answer.complete ? "" : "reading the last values…");
      if (!answer.complete) wait = 200;
      draw();
    } catch (failure) {
      tools.say("no answer: " + failure.message);
    }
    timer = setTimeout(poll, document.hidden ? 5 * wait : wait);
  }

  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.sort) continue;
    const name = head.dataset.sort;
    const turn = () => { sort = { name, down: sort.name === name ? !sort.down : name !== "name" }; draw(); };
    head.replaceChildren(element("button", { type: "button", onclick: turn }, head.textContent, element("span")));
  }
  search.addEventListener("input", draw);
  compare.addEventListener("click", go);
  tools.key("/", "search", () => search.focus());
  tools.key("j", "next run", () => move(1));
  tools.key("k", "run before", () => move(-1));
  tools.key("Enter", "open the run", () => table.tBodies[0].rows[at]?.querySelector("a").click());
  tools.key("x", "choose the run for a comparison", () => table.tBodies[0].rows[at]?.querySelector("input").click());
  tools.key("c", "compare the chosen runs", go);
  poll();
})();
