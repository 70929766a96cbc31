"use strict";

/**
 * Plays all versions of a recording in step. They start at one moment of one clock and run together, silent but for
 * the chosen one: so switching is a matter of loudness, without a gap and at the same position.
 */
class Player {
  static START_DELAY = 0.02; // seconds, within which all sources are set up
  static FADE = 0.003; // seconds, time constant; a sudden switch would click

  /**
   * @param {AudioContext} context
   * @param {(AudioBuffer|null)[]} buffers a version each; null for one that cannot be played
   * @param {number} seconds the length of the longest
   */
  constructor(context, buffers, seconds) {
    this.context = context;
    this.buffers = buffers;
    this.seconds = seconds;
    this.chosen = buffers.findIndex((buffer) => buffer);
    this.playing = false;
    this.held = 0; // the position while nothing plays
    this.sources = [];
    this.gains = buffers.map((buffer, index) => {
      const gain = context.createGain();
      gain.gain.value = index === this.chosen ? 1 : 0;
      gain.connect(context.destination);
      return gain;
    });
  }

  /** Seconds from the start. */
  get position() {
    if (!this.playing) return this.held;
    const position = this.held + Math.max(0, this.context.currentTime - this.startTime);
    return Math.min(position, this.seconds);
  }

  /** Go on from the position; from the start where that is the end. */
  async play() {
    if (this.playing) return;
    this.playing = true;
    if (this.held >= this.seconds) this.held = 0;
    this.startTime = Infinity; // the clock may stand still until it has resumed
    await this.context.resume();
    if (this.playing && this.startTime === Infinity) this.startSources();
  }

  pause() {
    this.held = this.position;
    this.playing = false;
    this.stopSources();
  }

  /** Go to a position in seconds, playing or not. */
  seek(position) {
    const goesOn = this.playing && this.startTime !== Infinity;
    this.held = Math.min(Math.max(position, 0), this.seconds);
    if (!goesOn) return;
    this.stopSources();
    this.startSources();
  }

  /** Hear another version from now on; false where it cannot be played. */
  choose(index) {
    if (!this.buffers[index]) return false;
    this.chosen = index;
    this.gains.forEach(({ gain }, other) => {
      gain.setTargetAtTime(other === index ? 1 : 0, this.context.currentTime, Player.FADE);
    });
    return true;
  }

  /** Stop for good. */
  close() {
    this.pause();
    this.gains.forEach((gain) => gain.disconnect());
  }

  startSources() {
    this.startTime = this.context.currentTime + Player.START_DELAY;
    this.buffers.forEach((buffer, index) => {
      if (!buffer || this.held >= buffer.duration) return;
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.gains[index]);
      source.start(this.startTime, this.held);
      this.sources.push(source);
    });
  }

  stopSources() {
    for (const source of this.sources) {
      source.stop();
      source.disconnect();
    }
    this.sources = [];
  }
}

/** The samples of a base64 sound, or null where the browser cannot decode it. */
async function decode(context, sound) {
  const bytes = Uint8Array.from(atob(sound), (letter) => letter.charCodeAt(0));
  try {
    return await context.decodeAudioData(bytes.buffer);
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
}
