"use strict";

/**
 * Plays all versions of a recording in step. All sources start at the same time of one clock; the gain of all but the
 * chosen one is 0. Switching changes gains only, so there is no gap and the position stays.
 */
class Player {
  static START_DELAY = 0.02; // seconds to set up all sources
  static FADE = 0.003; // seconds, time constant; an abrupt change would click

  /**
   * @param {AudioContext} context
   * @param {(AudioBuffer|null)[]} buffers one per version; null if it cannot be played
   * @param {number} seconds duration of the longest version
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

  /** The position in seconds. */
  get position() {
    if (!this.playing) return this.held;
    const position = this.held + Math.max(0, this.context.currentTime - this.startTime);
    return Math.min(position, this.seconds);
  }

  /** Play from the current position, or from the start if it is the end. */
  async play() {
    if (this.playing) return;
    this.playing = true;
    if (this.held >= this.seconds) this.held = 0;
    this.startTime = Infinity; // the clock may be suspended until resume() returns
    await this.context.resume();
    if (this.playing && this.startTime === Infinity) this.startSources();
  }

  pause() {
    this.held = this.position;
    this.playing = false;
    this.stopSources();
  }

  /** Move to a position in seconds, while playing or paused. */
  seek(position) {
    const goesOn = this.playing && this.startTime !== Infinity;
    this.held = Math.min(Math.max(position, 0), this.seconds);
    if (!goesOn) return;
    this.stopSources();
    this.startSources();
  }

  /** Switch to another version; return false if it cannot be played. */
  choose(index) {
    if (!this.buffers[index]) return false;
    this.chosen = index;
    this.gains.forEach(({ gain }, other) => {
      gain.setTargetAtTime(other === index ? 1 : 0, this.context.currentTime, Player.FADE);
    });
    return true;
  }

  /** Stop and disconnect. */
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

/** Decode base64 audio; return null if the browser cannot decode it. */
async function decode(context, sound) {
  const bytes = Uint8Array.from(atob(sound), (letter) => letter.charCodeAt(0));
  try {
    return await context.decodeAudioData(bytes.buffer);
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
}
