"use strict";

const SEEK_SECONDS = 0.5; // per press of an arrow key

const data = JSON.parse(document.getElementById("data").textContent);
/** Callbacks by index of the recordings whose media are being loaded; their scripts call `receiveMedia`. */
const awaited = new Map();

function receiveMedia(index, media) {
  awaited.get(index)?.(media);
  awaited.delete(index);
}

/**
 * Load the audio and images of a recording: embedded in the page, or from a script beside it (a page opened from disk
 * may not read files). Rejects with an `Error` if the script is missing.
 */
function loadMedia(index) {
  const inline = document.getElementById(`media-${index}`);
  if (inline) return Promise.resolve(JSON.parse(inline.textContent));
  return new Promise((resolve, reject) => {
    const { file } = data.recordings[index];
    const script = element("script", { src: file, onload: () => script.remove() });
    script.onerror = () => reject(new Error(`${file} cannot be loaded: it belongs beside this page`));
    awaited.set(index, resolve);
    document.head.append(script);
  });
}

/** The opened recording: controls, scores and images. */
class Panel {
  /** The selected version, kept from one recording to the next. */
  static chosen = Math.max(0, data.versions.findIndex((version) => version.role === "enhanced"));

  constructor(index, cell) {
    this.recording = data.recordings[index];
    this.index = index;
    this.box = element("div", { className: "panel", tabIndex: -1, role: "region" });
    this.box.setAttribute("aria-label", `Player of ${this.recording.name}`);
    cell.append(this.box);
    this.closed = false;
    this.say("Loading …");
    this.box.focus({ preventScroll: true });
  }

  say(message) {
    this.box.replaceChildren(element("p", { role: "status" }, message));
  }

  /** Load, decode and show the recording; stops when the panel is closed meanwhile. */
  async open(context) {
    if (!this.recording.playable) return this.say(this.recording.problem);
    let media;
    try {
      media = await loadMedia(this.index);
    } catch (error) {
      return this.say(error.message);
    }
    const buffers = await Promise.all(media.versions.map((version) => version && decode(context, version.sound)));
    if (this.closed) return;
    if (!buffers.some((buffer) => buffer)) return this.say("This browser cannot decode FLAC files.");
    this.player = new Player(context, buffers, media.seconds);
    this.player.choose(Panel.chosen);
    this.box.replaceChildren(this.makeControls(), this.makeScores(), ...this.makePictures(media));
    this.tick();
    this.box.scrollIntoView({ block: "nearest" });
  }

  close() {
    this.closed = true;
    cancelAnimationFrame(this.frame);
    this.player?.close();
  }

  makeControls() {
    this.playButton = element("button", { type: "button", className: "play", onclick: () => this.toggle() });
    this.slider = element("input", { type: "range", min: 0, max: this.player.seconds, step: "any", value: 0 });
    this.slider.setAttribute("aria-label", "Position");
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.time = element("span", { className: "time" });
    this.choices = data.versions.map((version, index) => {
      const key = element("kbd", { "aria-hidden": "true" }, String(index + 1));
      const choice = element("button", { type: "button", disabled: !this.player.buffers[index] }, key, version.name);
      choice.style.setProperty("--color", version.color);
      choice.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the keyboard focus on the player
      choice.addEventListener("click", () => this.choose(index));
      return choice;
    });
    const last = data.versions.length;
    const digits = last > 1 ? `1 to ${last} choose` : "1 chooses";
    const keys = `Keys: space plays and pauses, ← and → move by ${SEEK_SECONDS} s, ${digits} the version.`;
    return element(
      "div",
      { className: "player" },
      element("div", { className: "versions", role: "group", "aria-label": "Version" }, ...this.choices),
      element("div", { className: "transport" }, this.playButton, this.slider, this.time),
      element("p", { className: "keys" }, keys),
    );
  }

  /** Make the table of scores, one row per version, with the gain over noisy. */
  makeScores() {
    const { scores } = this.recording;
    const scored = data.versions.map((version, index) => index).filter((index) => data.versions[index].scored);
    if (scored.length === 0) return "";
    const baseline = scores[data.versions.findIndex((version) => version.role === "noisy")];
    const rows = scored.map((version) => {
      const cells = data.metrics.map(({ digits }, metric) => {
        const cell = element("td", {}, formatted(scores[version][metric], digits));
        if (baseline && scores[version] !== baseline) {
          const gain = difference(scores[version][metric], baseline[metric]);
          const className = gain < 0 ? "spread worse" : "spread";
          cell.append(element("small", { className }, formattedGain(gain, digits)));
        }
        return cell;
      });
      return element("tr", {}, element("th", { scope: "row" }, data.versions[version].name), ...cells);
    });
    const labels = ["version", ...data.metrics.map((metric) => metric.label)];
    const head = element("tr", {}, ...labels.map((label) => element("th", { scope: "col" }, label)));
    const table = element(
      "table",
      { className: "figures" },
      element("caption", {}, baseline && scored.length > 1 ? "Scores, and gain over noisy" : "Scores"),
      element("thead", {}, head),
      element("tbody", {}, ...rows),
    );
    const label = "Scores, scrolls sideways";
    return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, table);
  }

  makePictures(media) {
    this.pictures = media.versions.map((version, index) => version && this.makePicture(media, version, index));
    const range = element(
      "p",
      { className: "range" },
      `−${data.range_db} dB `,
      element("span", { className: "colors" }),
      " 0 dB (loudest point of all versions)",
    );
    return [element("div", { className: "pictures" }, ...this.pictures.filter((picture) => picture)), range];
  }

  makePicture(media, version, index) {
    const { name, color } = data.versions[index];
    const src = `data:image/webp;base64,${version.spectrogram}`;
    const frame = element(
      "div",
      { className: "frame" },
      element("img", { src, alt: `spectrogram of ${name}`, className: "spectrogram", draggable: false }),
      element("div", { className: "cursor" }),
    );
    frame.addEventListener("click", (event) => {
      const { left, width } = frame.getBoundingClientRect();
      this.seek(((event.clientX - left) / width) * this.player.seconds);
      this.choose(index);
    });
    const frequencies = [media.highest_hz, media.highest_hz / 2, 0].map((hz) => element("span", {}, `${hz / 1000}`));
    const unit = element("span", { className: "unit" }, "kHz");
    const figure = element(
      "figure",
      {},
      element("figcaption", {}, name),
      element("div", { className: "frequencies", "aria-hidden": "true" }, ...frequencies, unit),
      frame,
      element("div", { className: "times", "aria-hidden": "true" }, ...Panel.timeMarks(media.seconds)),
    );
    figure.style.setProperty("--color", color);
    return figure;
  }

  /** Make about five marks at round times. */
  static timeMarks(seconds) {
    const magnitude = 10 ** Math.floor(Math.log10(seconds / 2));
    const step = [5, 2, 1].map((factor) => factor * magnitude).find((size) => seconds / size >= 3) ?? magnitude;
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    const marks = [];
    for (let place = 0; place * step <= seconds; place++) {
      const mark = element("span", {}, (place * step).toFixed(digits) + (place === 0 ? " s" : ""));
      mark.style.left = `${(100 * place * step) / seconds}%`;
      marks.push(mark);
    }
    return marks;
  }

  toggle() {
    if (this.player.playing) this.player.pause();
    else this.player.play();
    this.tick();
  }

  seek(position) {
    this.player.seek(position);
    this.tick();
  }

  choose(index) {
    if (this.player.choose(index)) Panel.chosen = index;
    this.tick();
  }

  /** Show the state of the player; repeat with each frame while it plays. */
  tick() {
    cancelAnimationFrame(this.frame);
    const { player } = this;
    if (player.playing && player.position >= player.seconds) player.pause();
    const { position, seconds } = player;
    this.slider.value = position;
    this.time.textContent = `${position.toFixed(2)} / ${seconds.toFixed(2)} s`;
    this.slider.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${seconds.toFixed(1)} seconds`);
    this.playButton.textContent = player.playing ? "Pause" : "Play";
    this.box.style.setProperty("--played", position / seconds);
    this.choices.forEach((choice, index) => choice.setAttribute("aria-pressed", index === player.chosen));
    this.pictures?.forEach((picture, index) => picture?.classList.toggle("chosen", index === player.chosen));
    if (player.playing) this.frame = requestAnimationFrame(() => this.tick());
  }

  /** Handle a key; return false if it has no function. */
  press(key) {
    if (!this.player) return false;
    if (key === " ") this.toggle();
    else if (key === "ArrowLeft") this.seek(this.player.position - SEEK_SECONDS);
    else if (key === "ArrowRight") this.seek(this.player.position + SEEK_SECONDS);
    else if (/^[1-9]$/.test(key) && Number(key) <= data.versions.length) this.choose(Number(key) - 1);
    else return false;
    return true;
  }
}

function main() {
  let context = null;
  let panel = null;
  new FileTable(data, {
    onOpen: (index, cell) => {
      context ??= new AudioContext(); // browsers allow audio after the first click
      panel = new Panel(index, cell);
      panel.open(context);
    },
    onClose: () => {
      panel.close();
      panel = null;
    },
  });
  document.addEventListener("keydown", (event) => {
    const { target } = event;
    if (!panel || event.ctrlKey || event.altKey || event.metaKey) return;
    if (target.matches("select, input:not([type=range])")) return;
    if (event.key === " " && target.matches("button, summary, a")) return; // the space bar activates these
    if (panel.press(event.key)) event.preventDefault();
  });
}

main();
