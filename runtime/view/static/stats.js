// The overlay of numbers: what the runtime measured, and what this page does.

const COUNTERS = [
  ["frames_per_second", "frames / s", 1],
  ["frames", "frames"],
  ["key_frames", "key frames"],
  ["cuts", "cuts"],
  ["dropped", "dropped"],
  ["alive", "Gaussians alive"],
  ["drawn", "drawn"],
  ["culled", "culled"],
  ["tile_pairs", "tile pairs"],
];

export function showStats(element, status, page) {
  const stages = Object.entries(status?.stages ?? {});
  const counters = COUNTERS.filter(([name]) => name in (status?.counters ?? {}));
  element.replaceChildren(
    table("Runtime, ms", ["", "p50", "p90"], stages.map(([name, { p50, p90 }]) => [label(name), ms(p50), ms(p90)])),
    table("Runtime", null, counters.map(([name, text, digits = 0]) => [text, number(status.counters[name], digits)])),
    table("This page", null, page),
  );
}

function table(title, heads, rows) {
  const made = document.createElement("table");
  made.createCaption().textContent = title;
  for (const cells of heads ? [heads, ...rows] : rows) {
    const row = made.insertRow();
    cells.forEach((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      cell.textContent = text; // never markup: names come from elsewhere
      row.append(cell);
    });
  }
  return made;
}

function label(name) {
  return name.replaceAll("_", " ");
}

function ms(value) {
  return value.toFixed(value < 10 ? 1 : 0);
}

export function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
