// Start: shows the view that the page was made for.
"use strict";
(async () => {
  const root = document.getElementById("view");
  if (!root) return;
  const runs = root.dataset.runs.split(",");
  const show = async () => {
    // In a report of several runs, #RUN shows one of them, and no # all.
    const one = decodeURIComponent(location.hash.slice(1));
    if (root.dataset.view === "compare" && !(source.isReport && runs.includes(one))) return showComparison(root, runs);
    return showRun(root, runs.includes(one) ? one : runs[0]);
  };
  const draw = async () => {
    try {
      window.telemetryBoard = await show();
    } catch (failure) {
      tools.say(failure.message);
    }
  };
  if (source.isReport) window.addEventListener("hashchange", draw);
  await draw();
})();
