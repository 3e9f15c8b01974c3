// Board: the charts of a view. They share one axis and one zoom, and only what is on the screen is
// asked for and drawn.
"use strict";
class Board {
  constructor(root, axes) {
    this.root = root;
    this.axes = axes;
    const kept = tools.recall("axis");
    this.view = {
      axis: axes.includes(kept) ? kept : axes[0], range: null, hideFormer: tools.recall("former") === "hidden",
      log: false, points: 1000,
    };
    this.cards = [];
    this.atWork = 0;
    this.hasLooked = false;
    this.observer = new IntersectionObserver((seen) => this.look(seen), { rootMargin: "300px" });
    tools.onTheme(() => this.refresh(true));
  }

  // The view of a report may be changed for another.
  close() {
    this.observer.disconnect();
    for (const card of this.cards) Plotly.purge(card.box);
    this.cards.length = 0;
    tools.forgetKeys();
  }

  // One chart. draw(view, box) draws it and returns what is to be said below it.
  add(parent, title, draw, { wide = false, tall = false, restS = 0, words = "" } = {}) {
    const { element } = tools;
    const box = element("div", { class: tall ? "plot tall" : "plot" });
    const said = element("p", { class: "said" });
    const card = {
      box, said, draw, restS, words: (title + " " + words).toLowerCase(), isSeen: false, isStale: true,
      drawnAt: 0, isListening: false,
      element: element("section", { class: wide ? "card wide" : "card", "aria-label": tools.shown(title) },
        element("h3", {}, tools.shown(title)), box, said),
    };
    card.element.card = card;
    parent.append(card.element);
    this.cards.push(card);
    this.observer.observe(card.element);
    return card;
  }

  look(seen) {
    this.hasLooked = true;
    for (const entry of seen) entry.target.card.isSeen = entry.isIntersecting;
    this.work();
    chart.load().catch((failure) => tools.say(failure.message));
  }

  refresh(isForced = false) {
    const now = Date.now();
    for (const card of this.cards) {
      if (isForced || now - card.drawnAt >= card.restS * 1000) card.isStale = true;
    }
    this.work();
  }

  // At most three charts ask at one time, the first on the page first.
  work() {
    for (const card of this.cards) {
      if (this.atWork >= 3) return;
      if (!card.isSeen || !card.isStale || card.isBusy || card.element.hidden) continue;
      card.isStale = false;
      card.isBusy = true;
      this.atWork += 1;
      this.drawOne(card).finally(() => {
        card.isBusy = false;
        this.atWork -= 1;
        this.work();
      });
    }
  }

  get isIdle() {
    return this.hasLooked && this.atWork === 0 && !this.cards.some((card) => card.isSeen && card.isStale && !card.element.hidden);
  }

  async idle() {
    while (!this.isIdle) await new Promise((done) => setTimeout(done, 100));
  }

  async drawOne(card) {
    try {
      card.said.textContent = await card.draw(this.view, card.box) || "";
      card.drawnAt = Date.now();
      if (!card.isListening && card.box.on) {
        card.isListening = true;
        card.box.on("plotly_relayout", (change) => this.onZoom(change));
      }
    } catch (failure) {
      card.said.textContent = failure.message;
    }
  }

  onZoom(change) {
    if (change["xaxis.range[0]"] !== undefined) {
      const ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      this.setRange(this.view.axis === "time" ? ends.map(chart.secondsOf) : ends);
    } else if (change["xaxis.autorange"]) this.setRange(null);
  }

  setRange(range) {
    if (JSON.stringify(range) === JSON.stringify(this.view.range)) return;
    this.view.range = range;
    this.refresh(true);
    this.onChange();
  }

  setAxis(axis) {
    if (!this.axes.includes(axis)) return;
    this.view.axis = axis;
    this.view.range = null;
    tools.keep("axis", axis);
    this.refresh(true);
    this.onChange();
  }

  setFormer(isHidden) {
    this.view.hideFormer = isHidden;
    tools.keep("former", isHidden ? "hidden" : "shown");
    this.refresh(true);
    this.onChange();
  }

  setLog(isLog) {
    this.view.log = isLog;
    this.refresh(true);
    this.onChange();
  }

  filter(words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of this.cards) card.element.hidden = !wanted.every((word) => card.words.includes(word));
    this.work();
  }

  // What a series is asked for: over steps or times, with the bounds of the zoom.
  ask(startS) {
    const { axis, range, points } = this.view;
    if (!range) return { x: axis === "step" ? "step" : "time", from: null, to: null, points };
    const ends = axis === "hours" ? range.map((hours) => startS + hours * 3600) : range;
    return { x: axis === "step" ? "step" : "time", from: ends[0], to: ends[1], points: 2000 };
  }

  // The buttons above the charts.
  bar(parent) {
    const { element } = tools;
    const names = { step: "Steps", time: "Time", hours: "Hours" };
    const buttons = this.axes.map((axis) => element("button", { type: "button", onclick: () => this.setAxis(axis) }, names[axis]));
    const former = element("button", { type: "button", onclick: () => this.setFormer(!this.view.hideFormer) }, "Hide what a restart wrote again");
    const log = element("button", { type: "button", onclick: () => this.setLog(!this.view.log) }, "Log");
    const reset = element("button", { type: "button", onclick: () => this.setRange(null) }, "Whole run");
    const filter = element("input", { type: "search", placeholder: "Charts by name  ( / )", "aria-label": "Filter charts",
      oninput: () => this.filter(filter.value) });
    this.onChange = () => {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", this.axes[i] === this.view.axis));
      former.setAttribute("aria-pressed", this.view.hideFormer);
      log.setAttribute("aria-pressed", this.view.log);
      reset.disabled = this.view.range === null;
    };
    this.onChange();
    parent.append(element("div", { class: "tools board" }, ...buttons, log, former, reset, filter));
    this.axes.forEach((axis, i) => tools.key(String(i + 1), "charts over " + names[axis].toLowerCase(), () => this.setAxis(axis)));
    tools.key("o", "hide or show what a restart wrote again", () => this.setFormer(!this.view.hideFormer));
    tools.key("y", "logarithmic or linear values", () => this.setLog(!this.view.log));
    tools.key("0", "the whole run", () => this.setRange(null));
    tools.key("/", "charts by name", () => filter.focus());
  }
}

// A sentence on how much of a series is drawn.
function thinnedText(found) {
  const total = found.reduce((sum, one) => sum + one.count, 0);
  const shown = found.reduce((sum, one) => sum + one.value.length + (one.former ? one.former.value.length : 0), 0);
  if (!total) return "no values";
  if (shown >= total) return `${total.toLocaleString()} points`;
  const more = source.isReport ? "" : "; zoom in for every one";
  return `${shown.toLocaleString()} of ${total.toLocaleString()} points: the least and the greatest of each part${more}`;
}
