"use strict";

/** Create an element with properties or attributes and children; strings become text nodes, never HTML. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const formatted = (value, digits) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
const formattedGain = (value, digits) => (value > 0 ? "+" : "") + formatted(value, digits);

/** Return `a − b`, or null if either is missing. */
const difference = (a, b) => (a === null || b === null ? null : a - b);

/**
 * The list of files: sortable by column, filtered by name, with the scores of one version or its gain over noisy.
 * `onOpen(index, cell)` fills the panel below an opened row; `onClose()` is called before it is removed.
 */
class FileTable {
  constructor(data, { onOpen, onClose }) {
    this.data = data;
    this.onOpen = onOpen;
    this.onClose = onClose;
    this.baseline = data.versions.findIndex((version) => version.role === "noisy");
    this.scored = data.versions.map((version, index) => index).filter((index) => data.versions[index].scored);
    this.shown = this.scored.find((index) => data.versions[index].role === "enhanced") ?? this.scored[0];
    this.gain = false;
    this.sorting = { column: 0, descending: false };
    this.opened = null;
    this.columns = this.makeColumns();
    this.makeHead();
    this.rows = data.recordings.map((recording, index) => this.makeRow(recording, index));
    this.makeControls();
    this.update();
  }

  /** Return the columns: label, value of a recording, and text of a value. */
  makeColumns() {
    const columns = [
      { label: "file", value: (recording) => recording.name },
      { label: "seconds", value: (recording) => recording.seconds, text: (value) => formatted(value, 2) },
    ];
    if (this.scored.length === 0) return columns;
    this.data.metrics.forEach(({ label, digits }, metric) => {
      columns.push({
        label,
        value: (recording) => this.score(recording, metric),
        text: (value) => (this.gain ? formattedGain : formatted)(value, digits),
        isScore: true,
      });
    });
    return columns;
  }

  score(recording, metric) {
    const score = recording.scores[this.shown][metric];
    return this.gain ? difference(score, recording.scores[this.baseline][metric]) : score;
  }

  makeHead() {
    const head = document.querySelector("#table thead tr");
    this.heads = this.columns.map((column, index) => {
      const button = element("button", { type: "button", onclick: () => this.sort(index) }, column.label);
      return element("th", { scope: "col" }, button);
    });
    head.append(...this.heads);
  }

  makeRow(recording, index) {
    const button = element("button", { type: "button", className: "open", "aria-expanded": "false" }, recording.name);
    button.addEventListener("click", () => this.toggle(index));
    const head = element("th", { scope: "row" }, button);
    if (recording.problem) head.append(element("small", { className: "problem" }, recording.problem));
    const cells = this.columns.slice(1).map(() => element("td"));
    return { element: element("tr", {}, head, ...cells), button, cells };
  }

  makeControls() {
    const filter = document.getElementById("filter");
    filter.addEventListener("input", () => this.update());
    this.filter = filter;
    const choice = document.getElementById("version");
    for (const index of this.scored) {
      const { name } = this.data.versions[index];
      choice.append(element("option", { value: index, selected: index === this.shown }, name));
    }
    choice.addEventListener("change", () => this.show(Number(choice.value)));
    document.getElementById("version-choice").hidden = this.scored.length < 2;
    this.gainBox = document.getElementById("gain");
    this.gainBox.addEventListener("change", () => this.show(this.shown));
    document.getElementById("gain-choice").hidden = this.baseline < 0 || this.scored.length < 2;
  }

  /** Show the scores of a version, or its gain if the box is ticked (not for noisy itself). */
  show(version) {
    this.shown = version;
    this.gainBox.disabled = version === this.baseline;
    this.gain = this.gainBox.checked && !this.gainBox.disabled;
    this.update();
  }

  /** Sort by a column: names ascending and numbers descending first; the second click reverses the order. */
  sort(column) {
    const { sorting } = this;
    const descending = sorting.column === column ? !sorting.descending : column > 0;
    this.sorting = { column, descending };
    this.update();
  }

  update() {
    const { recordings } = this.data;
    const wanted = this.filter.value.trim().toLocaleLowerCase();
    const order = [...recordings.keys()].filter((index) => recordings[index].name.toLocaleLowerCase().includes(wanted));
    const { value } = this.columns[this.sorting.column];
    const values = recordings.map(value);
    const sign = this.sorting.descending ? -1 : 1;
    order.sort((a, b) => FileTable.compare(values[a], values[b], sign) || a - b);
    const rows = order.flatMap((index) => {
      this.fill(index);
      const row = this.rows[index].element;
      return this.opened?.index === index ? [row, this.opened.row] : [row];
    });
    document.querySelector("#table tbody").replaceChildren(...rows);
    this.heads.forEach((head, column) => this.markHead(head, column));
    if (this.opened && !order.includes(this.opened.index)) this.close();
    const all = recordings.length;
    const count = order.length === all ? `${all}` : `${order.length} of ${all}`;
    document.getElementById("count").textContent = `${count} files`;
  }

  /** Compare two values of a column; missing values are last in both orders. */
  static compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  }

  fill(index) {
    const recording = this.data.recordings[index];
    this.columns.slice(1).forEach((column, place) => {
      const value = column.value(recording);
      const cell = this.rows[index].cells[place];
      cell.textContent = column.text(value);
      cell.classList.toggle("worse", this.gain && column.isScore === true && value < 0);
    });
  }

  markHead(head, column) {
    const sorted = this.sorting.column === column;
    if (sorted) head.setAttribute("aria-sort", this.sorting.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }

  toggle(index) {
    const again = this.opened?.index === index;
    this.close();
    if (again) return;
    const cell = element("td", { colSpan: this.columns.length });
    const row = element("tr", { className: "opened" }, cell);
    this.rows[index].element.after(row);
    this.rows[index].button.setAttribute("aria-expanded", "true");
    this.opened = { index, row };
    this.onOpen(index, cell);
  }

  close() {
    if (!this.opened) return;
    this.opened.row.remove();
    this.rows[this.opened.index].button.setAttribute("aria-expanded", "false");
    this.opened = null;
    this.onClose();
  }
}
