// Tools of every page: elements, numbers as people read them, theme and keys.
"use strict";
document.documentElement.classList.add("scripted");

const tools = (() => {
  // Texts of trainers come in here only as text nodes and attribute values: never as markup.
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (key === "class") made.className = value;
      else if (value === true) made.setAttribute(key, "");
      else made.setAttribute(key, String(value));
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // A text with its control characters and those that turn the direction of reading as codes.
  function shown(text) {
    return String(text).replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu,
      (character) => "\\u" + character.codePointAt(0).toString(16).padStart(4, "0"));
  }

  function number(value, digits = 4) {
    if (value === null || value === undefined) return "-";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 10 ** digits) return String(value);
    const shown = Number(value.toPrecision(digits));
    return Math.abs(shown) >= 1e6 || (shown !== 0 && Math.abs(shown) < 1e-4)
      ? value.toExponential(2) : String(shown);
  }

  function count(value) {
    if (value === null || value === undefined) return "-";
    for (const [limit, scale, unit] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]]) {
      if (Math.abs(value) >= limit) return Number((value / scale).toPrecision(3)) + unit;
    }
    return String(Math.round(value));
  }

  function duration(seconds) {
    if (seconds === null || seconds === undefined || !(seconds >= 0)) return "-";
    const whole = Math.round(seconds);
    const [d, h, m, s] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24,
      Math.floor(whole / 60) % 60, whole % 60];
    if (d) return `${d} d ${h} h`;
    if (h) return `${h} h ${m} min`;
    return m ? `${m} min ${s} s` : `${s} s`;
  }

  function moment(seconds) {
    if (seconds === null || seconds === undefined) return "-";
    const at = new Date(seconds * 1000);
    const two = (part) => String(part).padStart(2, "0");
    return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
      `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  }

  // Settings of this browser. A page opened from disk may not be allowed to keep any.
  function recall(name) {
    try { return localStorage.getItem("telemetry." + name); } catch { return null; }
  }
  function keep(name, value) {
    try { localStorage.setItem("telemetry." + name, value); } catch { /* not kept */ }
  }

  const listeners = [];
  function isDark() {
    const said = document.documentElement.dataset.theme;
    return said ? said === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function setTheme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    for (const tell of listeners) tell();
  }
  function onTheme(tell) { listeners.push(tell); }
  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  const keys = [], GLOBAL_KEYS = 2;
  function key(name, text, act) { keys.push({ name, text, act }); }
  function forgetKeys() { keys.splice(GLOBAL_KEYS); }
  function showKeys() {
    const dialog = document.getElementById("keys");
    if (dialog.open) { dialog.close(); return; }
    const rows = keys.map(({ name, text }) => element("tr", {},
      element("td", {}, element("kbd", {}, name)), element("td", {}, text)));
    dialog.replaceChildren(element("h2", {}, "Keys"), element("table", {},
      element("tbody", {}, ...rows)), element("p", {},
      element("button", { type: "button", onclick: () => dialog.close() }, "Close")));
    dialog.showModal();
  }
  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    const found = keys.find(({ name }) => name === event.key);
    if (found) { event.preventDefault(); found.act(event); }
  }

  function say(text) { document.getElementById("live").textContent = text; }

  function begin() {
    setTheme(recall("theme"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(recall("theme")));
    const turn = () => {
      const next = isDark() ? "light" : "dark";
      keep("theme", next);
      setTheme(next);
    };
    document.getElementById("theme").addEventListener("click", turn);
    document.getElementById("help").addEventListener("click", showKeys);
    key("t", "light or dark", turn);
    key("?", "these keys", showKeys);
    document.addEventListener("keydown", onKey);
  }

  return { element, shown, number, count, duration, moment, recall, keep, isDark, onTheme, color, key, forgetKeys, say, begin };
})();
tools.begin();
