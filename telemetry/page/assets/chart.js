// Chart: lines and heat maps drawn by Plotly, in the colours of the page.
"use strict";
const chart = (() => {
  const COLORS = ["#2f7ed8", "#e4572e", "#2ca05a", "#9467bd", "#d99a00", "#17a2b8", "#e377c2",
    "#8c6d46", "#6b7a8f", "#a3b81f", "#4361c2", "#c2185b", "#00796b", "#f06292", "#7e57c2",
    "#5d9cec", "#bf5b17", "#33a089", "#b39700", "#999999"];
  const SHAPES_MAX = 200, LABEL_MAX = 48;
  const isTouch = matchMedia("(pointer: coarse)").matches;

  // Plotly reads a little markup in names, titles and labels: a producer's text must have none.
  function plain(text) {
    return tools.shown(String(text)).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  // Plotly draws dates in UTC, and people read the clock on their wall.
  function local(seconds) {
    const ms = seconds * 1000;
    return ms - new Date(ms).getTimezoneOffset() * 60000;
  }
  function secondsOf(shown) {
    const ms = typeof shown === "number" ? shown : Date.parse(String(shown).replace(" ", "T") + "Z");
    return (ms + new Date(ms).getTimezoneOffset() * 60000) / 1000;
  }

  // Place on the axis of a point: step, time of day, or hours since its run began.
  function placeOf(axis, startS) {
    if (axis === "step") return (step) => step;
    if (axis === "time") return (step, wall) => (wall === null ? null : local(wall));
    return (step, wall) => (wall === null ? null : (wall - startS) / 3600);
  }

  // Over time a line ends where a process ended: between that and the restart there is nothing.
  function broken(part, restarts) {
    if (!restarts.length || !part.wall_s.length) return part;
    const found = { step: [], wall_s: [], value: [], odd: [], count: part.count };
    const moved = [];
    let next = 0;
    part.wall_s.forEach((wall, i) => {
      while (next < restarts.length && restarts[next] <= part.wall_s[0]) next += 1;
      if (next < restarts.length && wall >= restarts[next]) {
        while (next < restarts.length && wall >= restarts[next]) next += 1;
        found.step.push(part.step[i]); found.wall_s.push(wall); found.value.push(null);
      }
      moved.push(found.value.length);
      found.step.push(part.step[i]); found.wall_s.push(wall); found.value.push(part.value[i]);
    });
    found.odd = part.odd.map(([at, word]) => [moved[at], word]);
    found.former = part.former;
    return found;
  }

  function lineTraces(line, whole, view) {
    const place = placeOf(view.axis, line.startS);
    const found = view.axis === "step" || line.source?.startsWith("hardware:") ? whole : broken(whole, line.restarts);
    const points = (part) => part.step.map((step, i) => place(step, part.wall_s[i]));
    const x = points(found), name = plain(cut(line.label)), traces = [];
    const few = found.value.length < 40;
    traces.push({
      x, y: found.value, name, type: "scatter", mode: few ? "lines+markers" : "lines",
      line: { color: line.color, width: 1.6, dash: line.dash }, marker: { size: 4 },
      connectgaps: false, hovertemplate: "%{y:.6g}<extra>%{fullData.name}</extra>", showlegend: true,
    });
    const former = found.former;
    if (former && !view.hideFormer) {
      traces.push({
        x: points(former), y: former.value, name: name + ", before the restart", type: "scatter",
        mode: "lines", line: { color: line.color, width: 1, dash: "dot" }, opacity: 0.55,
        hovertemplate: "%{y:.6g}<extra>%{fullData.name}</extra>", showlegend: true,
      });
    }
    const odd = [...(former && !view.hideFormer ? oddOf(former, points(former)) : []), ...oddOf(found, x)];
    if (odd.length) {
      const numbers = found.value.filter((value) => value !== null);
      const top = numbers.reduce((most, value) => Math.max(most, value), -Infinity);
      traces.push({
        x: odd.map((each) => each.x), y: odd.map(() => (Number.isFinite(top) ? top : 0)),
        text: odd.map((each) => each.word), name: name + ": not a number", type: "scatter",
        mode: "markers", marker: { symbol: "x", size: 9, color: tools.color("bad") },
        hovertemplate: "%{text}<extra>%{fullData.name}</extra>", showlegend: false,
      });
    }
    return traces;
  }

  function cut(label) {
    return label.length > LABEL_MAX ? label.slice(0, LABEL_MAX) + "…" : label;
  }

  function oddOf(part, x) {
    return part.odd.map(([at, word]) => ({ x: x[at], word }));
  }

  // Stages as bands; restarts, gaps and alerts as lines and bands.
  function shapesOf(overview, view, hasStageNames) {
    const place = placeOf(view.axis, overview.first_s);
    const dark = tools.isDark();
    const shapes = [];
    const end = place(overview.step, overview.last_s);
    const xOf = (mark) => place(mark.step, mark.wall_s);
    const stages = [];
    for (const mark of overview.marks) {
      if (mark.kind !== "stage" || xOf(mark) === null) continue;
      // A restart goes back some steps: what it wrote again has the stages of the later session.
      while (view.axis === "step" && stages.length && xOf(stages.at(-1)) >= xOf(mark)) stages.pop();
      if (stages.at(-1)?.text !== mark.text) stages.push(mark);
    }
    stages.forEach((mark, i) => {
      const next = stages[i + 1];
      shapes.push({
        type: "rect", xref: "x", yref: "paper", x0: xOf(mark), x1: next ? xOf(next) : end, y0: 0, y1: 1,
        layer: "below", line: { width: 0 },
        fillcolor: i % 2 ? (dark ? "#ffffff10" : "#00000008") : (dark ? "#7db4ff1c" : "#0a58ca12"),
        label: { text: hasStageNames ? plain(mark.text) : "", textposition: "top left", font: { size: 10, color: tools.color("dim") } },
      });
    });
    for (const mark of overview.marks) {
      const x = xOf(mark);
      if (x === null || !["restart", "gap", "alert", "damage"].includes(mark.kind)) continue;
      const color = tools.color(mark.kind === "restart" ? "link" : mark.kind === "alert" ? "warn" : "bad");
      if (mark.kind === "alert" && mark.end_wall_s && view.axis !== "step") {
        shapes.push({
          type: "rect", xref: "x", yref: "paper", x0: x, x1: place(null, mark.end_wall_s), y0: 0, y1: 0.03,
          layer: "below", line: { width: 0 }, fillcolor: color,
        });
      }
      shapes.push({
        type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below",
        line: { color, width: 1, dash: mark.kind === "restart" ? "dash" : "dot" },
      });
    }
    return shapes.slice(0, SHAPES_MAX);
  }

  function layoutOf(view, more = {}) {
    const grid = tools.color("line"), text = tools.color("text");
    const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    const x = { ...axis, type: view.axis === "time" ? "date" : "linear",
      title: { text: { step: "step", time: "", hours: "hours since the start" }[view.axis], standoff: 6 } };
    if (view.range) {
      x.range = view.axis === "time" ? view.range.map(local) : [...view.range];
      x.autorange = false;
    } else x.autorange = true;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12 },
      margin: { l: 52, r: 12, t: 8, b: 36 }, hovermode: "x unified", dragmode: isTouch ? false : "zoom",
      hoverlabel: { bgcolor: tools.color("panel"), bordercolor: grid, font: { color: text } },
      legend: { orientation: "h", y: -0.22, font: { size: 11 } }, showlegend: true, xaxis: x,
      yaxis: { ...axis, type: view.log ? "log" : "linear", exponentformat: "power" }, ...more,
    };
  }

  const CONFIG = {
    displaylogo: false, responsive: true, displayModeBar: isTouch ? false : "hover", doubleClick: "reset",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  };

  // Plotly comes last: its script is long, and holds up all else while the browser reads it. The
  // first values are asked for before. A report has it inline, at its end.
  let loading = null;
  function load() {
    loading ||= new Promise((done, fail) => {
      const link = document.getElementById("plotly");
      if (window.Plotly) done();
      else if (!link) addEventListener("load", done);
      else document.head.append(tools.element("script", { src: link.href, onload: done, onerror: () => fail(new Error("the charts' script can't be loaded")) }));
    });
    return loading;
  }

  function restartsOf(overview) {
    return overview.marks.filter((mark) => mark.kind === "restart").map((mark) => mark.wall_s);
  }

  async function drawLines(box, lines, found, view, overview, hasStageNames = false) {
    const traces = lines.flatMap((line, i) => lineTraces(line, found[i], view));
    const shapes = overview ? shapesOf(overview, view, hasStageNames) : [];
    await load();
    await Plotly.react(box, traces, layoutOf(view, { shapes, showlegend: traces.length > 1 }), CONFIG);
  }

  async function drawGrid(box, grid, view, startS, isHistogram) {
    const place = placeOf(view.axis, startS);
    const x = grid.step.map((step, i) => place(step, grid.wall_s[i]));
    const y = isHistogram ? grid.y : grid.y.map(plain);
    const trace = {
      type: "heatmap", x, y, z: grid.z,
      colorscale: isHistogram ? [[0, tools.color("panel")], [1, tools.color("link")]] : "Viridis", hoverongaps: false, zsmooth: false,
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 10 } },
      hovertemplate: "%{x}<br>%{y}<br>%{z:.5g}<extra></extra>",
    };
    const layout = layoutOf({ ...view, log: false }, { hovermode: "closest", showlegend: false });
    if (!isHistogram) Object.assign(layout.yaxis, { type: "category", autorange: "reversed", tickfont: { size: 10 } });
    await load();
    await Plotly.react(box, [trace], layout, CONFIG);
  }

  return { load, restartsOf, COLORS, drawLines, drawGrid, secondsOf, plain };
})();
