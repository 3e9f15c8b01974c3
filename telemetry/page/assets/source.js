// Source: where the page has its values from. A served page asks the process that serves it; a
// report carries the answers in itself.
"use strict";
const source = (() => {
  const embedded = document.getElementById("answers");
  const answers = embedded ? JSON.parse(embedded.textContent) : null;
  const READING_MS = 500, BATCH_MAX = 40;

  async function ask(path) {
    for (;;) {
      const answer = await fetch(path, { credentials: "same-origin", cache: "no-store" });
      const value = await answer.json().catch(() => ({}));
      if (!answer.ok) throw new Error(value.problem || `the page answered ${answer.status}`);
      if (answer.status !== 202) return value;
      tools.say(value.reading + "…");
      await new Promise((done) => setTimeout(done, READING_MS));
    }
  }

  const path = (run, rest = "") => `/api/runs/${encodeURIComponent(run)}${rest}`;

  async function overview(run) {
    return answers ? answers.runs[run].overview : ask(path(run));
  }

  // wanted: [{source, name}]; view: {x: "step" | "time", from, to, points}
  async function series(run, wanted, view) {
    if (answers) return wanted.map((one) => kept(answers.runs[run].series, one, view));
    const found = [];
    for (let at = 0; at < wanted.length; at += BATCH_MAX) {
      const query = new URLSearchParams({ x: view.x, points: view.points });
      if (view.from !== null) query.set("from", view.from);
      if (view.to !== null) query.set("to", view.to);
      for (const one of wanted.slice(at, at + BATCH_MAX)) {
        query.append("s", one.source);
        query.append("n", one.name);
      }
      found.push(...(await ask(path(run, "/series?" + query))).series);
    }
    return found;
  }

  // What a report has of a series: all of it for every view, so that zooming needs no answer.
  function kept(all, one, view) {
    const found = all.find((each) => each.source === one.source && each.name === one.name);
    return found || { ...one, count: 0, step: [], wall_s: [], value: [], odd: [] };
  }

  async function layers(run, metric) {
    if (answers) return answers.runs[run].layers[metric];
    return ask(path(run, "/layers?" + new URLSearchParams({ metric })));
  }

  async function histogram(run, name) {
    if (answers) return answers.runs[run].histograms[name];
    return ask(path(run, "/histogram?" + new URLSearchParams({ name })));
  }

  async function goodput(run) {
    return answers ? answers.runs[run].goodput : ask(path(run, "/goodput"));
  }

  return { goodput, ask, overview, series, layers, histogram, answers, isReport: answers !== null };
})();
