// Plan: which charts a run gets, from the names that it has recorded.
"use strict";
const plan = (() => {
  const LEARNING = [
    { title: "Learning rate", match: /(^|\/)(learning_rate|lr)(\/|$|-)/ },
    { title: "Gradient norm", match: /grad.*norm/ },
    { title: "Validation accuracy", match: /^(val|eval)\/.*(accuracy|acc)$/ },
  ];
  const SPEED = [
    { title: "Tokens per second", match: /tokens_per_second/ },
    { title: "Step time", match: /step_seconds|step_time/ },
    { title: "Work of each rank", match: /rank\/\d+\/work_seconds/ },
  ];
  const HARDWARE = [
    { title: "Processor and memory, %", match: /^(hw\/[^/]+\/)?(cpu_percent|memory_percent)$/ },
    { title: "GPU utilization, %", match: /gpu\/\d+\/utilization_percent$/ },
    { title: "GPU memory, bytes", match: /gpu\/\d+\/memory_used_bytes$/ },
    { title: "GPU power, W", match: /gpu\/\d+\/power_watts$/ },
    { title: "GPU temperature, °C", match: /gpu\/\d+\/temperature_celsius$/ },
    { title: "Disk, bytes/s", match: /disk.*bytes_per_second$/ },
    { title: "Network, bytes/s", match: /net.*bytes_per_second$/ },
  ];
  const METRICS = ["zero_ratio", "flip", "sqnr", "scale"];
  const LINES_MAX = 20;

  const isHardware = (entry) => entry.source.startsWith("hardware:");
  const isOfLayer = (entry) => /^[^/]+\/layers\.\d/.test(entry.name);

  // Named groups of names; what no group has comes last, one chart a name.
  function of(overview) {
    const left = new Map(overview.names.map((entry) => [entry.source + "\t" + entry.name, entry]));
    const take = (matches, most = LINES_MAX) => {
      const found = [...left.values()].filter(matches).slice(0, most);
      for (const entry of found) left.delete(entry.source + "\t" + entry.name);
      return found;
    };
    const group = (list, of) => list
      .map(({ title, match }) => ({ title, entries: take((entry) => of(entry) && match.test(entry.name)) }))
      .filter(({ entries }) => entries.length);
    for (const entry of overview.names) if (isOfLayer(entry)) left.delete(entry.source + "\t" + entry.name);
    const loss = take((entry) => entry.source === "rank0" && (entry.name === overview.loss_name || entry.name === "val/loss"));
    const rest = (entry) => !isHardware(entry);
    const found = {
      learning: [...(loss.length ? [{ title: "Loss", entries: loss, isLoss: true }] : []), ...group(LEARNING, rest)],
      speed: group(SPEED, rest), hardware: group(HARDWARE, isHardware),
    };
    found.layers = [...overview.layer_metrics].sort((one, other) => rank(one) - rank(other));
    found.histograms = overview.histograms;
    found.quantization = take((entry) => entry.source === "rank0" && entry.name.startsWith("quant/"), Infinity)
      .sort((one, other) => rank(one.name) - rank(other.name)).map((entry) => ({ title: entry.name, entries: [entry] }));
    found.others = [...left.values()].filter(rest).map((entry) => ({ title: entry.name, entries: [entry] }));
    found.moreHardware = [...left.values()].filter(isHardware).map((entry) => ({ title: entry.name, entries: [entry] }));
    return found;
  }

  function rank(metric) {
    const at = METRICS.findIndex((word) => metric.includes(word));
    return at < 0 ? METRICS.length : at;
  }

  return { of };
})();
