// Source: where the page has its values from. Served pages ask the sidecar's page for them; a
// report carries the answers in itself.
"use strict";
const source = (() => {
  const embedded = document.getElementById("answers");
  const answers = embedded ? JSON.parse(embedded.textContent) : null;

  async function ask(path) {
    const answer = await fetch(path, { credentials: "same-origin", cache: "no-store" });
    const value = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(value.problem || `the page answered ${answer.status}`);
    return value;
  }

  return { ask, answers, isReport: answers !== null };
})();
