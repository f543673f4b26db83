"use strict";
(() => {
  const RAMP = 0.008; // seconds of cross-fade, against clicks
  const LEAD = 0.03; // seconds from the command to play to the common start of all versions
  const FFT = 512;
  const FLOOR = -100, CEILING = -20; // dB of full scale
  const STOPS = [[9, 7, 26], [43, 20, 96], [112, 31, 121], [187, 55, 98], [236, 105, 56], [250, 178, 59], [252, 253, 214]];

  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent); // sampleRate, clips: [name], versions: [label]
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");

  // Sound

  let shared = null;
  function audioContext() {
    if (!shared) {
      try {
        shared = new AudioContext({ sampleRate: facts.sampleRate }); // the browser resamples the sum once, and well
      } catch {
        shared = new AudioContext();
      }
    }
    return shared;
  }

  const sounds = new Map(); // clip -> promise of its versions, as AudioBuffers of equal length
  function decode(clip) {
    if (!sounds.has(clip)) {
      const decoder = new OfflineAudioContext(1, 1, facts.sampleRate);
      const encoded = JSON.parse(byId(`sounds-${clip}`).textContent);
      sounds.set(clip, Promise.all(encoded.map((text) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        return decoder.decodeAudioData(bytes.buffer);
      })));
    }
    return sounds.get(clip);
  }

  function rampTo(parameter, value, now) {
    parameter.cancelScheduledValues(now);
    parameter.setValueAtTime(parameter.value, now);
    parameter.linearRampToValueAtTime(value, now + RAMP);
  }

  // A transport: all its tracks run at once, one of them is heard.

  const decks = [];
  let current = null; // the deck that the keys act on

  class Deck {
    constructor(root) {
      this.root = root;
      this.tracks = [];
      this.active = 0;
      this.offset = 0; // where it stands, or stood when it was started
      this.voices = null; // while it plays: the tracks' sources and gains
      this.looping = false;
      this.scope = root.querySelector(".scope");
      this.time = root.querySelector(".time");
      this.playButton = root.querySelector(".play");
      this.loopButton = root.querySelector(".loop");
      this.playButton.addEventListener("click", () => this.toggle());
      this.loopButton.addEventListener("click", () => this.setLooping(!this.looping));
      for (const kind of ["pointerdown", "focusin"]) root.addEventListener(kind, () => { current = this; });
      this.scope.addEventListener("pointerdown", (event) => this.drag(event));
      this.scope.addEventListener("pointermove", (event) => { if (event.buttons & 1) this.drag(event); });
      decks.push(this);
    }

    get duration() { return this.tracks.length ? this.tracks[0].duration : 0; }

    get position() {
      if (!this.voices) return this.offset;
      const elapsed = this.offset + Math.max(0, shared.currentTime - this.startedAt);
      return this.looping || elapsed > this.duration + 0.2 ? elapsed % this.duration : Math.min(elapsed, this.duration);
    }

    load(tracks, active) {
      this.pause();
      this.tracks = tracks;
      this.active = active;
      this.offset = 0;
      this.scope.setAttribute("aria-valuemax", this.duration.toFixed(1));
      this.show();
    }

    toggle() {
      if (this.voices) this.pause(); else this.play();
    }

    play() {
      if (this.voices || !this.tracks.length) return;
      for (const deck of decks) if (deck !== this) deck.pause();
      current = this;
      const context = audioContext();
      context.resume();
      if (this.offset > this.duration - 0.02) this.offset = 0;
      this.startedAt = context.currentTime + LEAD;
      const master = context.createGain();
      master.gain.setValueAtTime(0, this.startedAt);
      master.gain.linearRampToValueAtTime(1, this.startedAt + RAMP);
      master.connect(context.destination);
      const voices = this.tracks.map((buffer, index) => {
        const source = new AudioBufferSourceNode(context, { buffer, loop: this.looping });
        const gain = new GainNode(context, { gain: index === this.active ? 1 : 0 });
        source.connect(gain).connect(master);
        source.start(this.startedAt, this.offset);
        return { source, gain };
      });
      voices[0].source.onended = () => {
        if (this.voices !== voices) return;
        this.voices = null;
        this.offset = 0;
        this.mark();
      };
      this.voices = voices;
      this.master = master;
      this.started?.();
      this.mark();
      this.follow();
    }

    pause() {
      if (!this.voices) return;
      this.offset = this.position;
      const { voices, master } = this;
      this.voices = null;
      const now = shared.currentTime;
      rampTo(master.gain, 0, now);
      for (const { source } of voices) source.stop(now + RAMP);
      voices[0].source.onended = () => master.disconnect();
      this.mark();
    }

    seek(seconds) {
      const playing = Boolean(this.voices);
      this.pause();
      this.offset = Math.min(Math.max(seconds, 0), this.duration);
      if (playing) this.play();
      this.show();
    }

    select(index) {
      this.active = index;
      if (this.voices) {
        const now = shared.currentTime;
        this.voices.forEach(({ gain }, track) => rampTo(gain.gain, track === index ? 1 : 0, now));
      }
    }

    setLooping(looping) {
      if (this.voices && !looping) { // the count starts anew, or the end would be reckoned from the first round
        this.startedAt = shared.currentTime - (this.position - this.offset);
      }
      this.looping = looping;
      if (this.voices) for (const { source } of this.voices) source.loop = looping;
      this.loopButton.setAttribute("aria-pressed", String(looping));
    }

    drag(event) {
      if (event.pointerType === "mouse" && event.button > 0) return;
      const box = this.scope.getBoundingClientRect();
      this.seek((event.clientX - box.left) / box.width * this.duration);
    }

    mark() {
      this.root.classList.toggle("playing", Boolean(this.voices));
      this.playButton.setAttribute("aria-label", this.voices ? "Pause" : "Play");
      this.show();
    }

    follow() {
      if (!this.voices) return;
      this.show();
      if (reduced.matches) setTimeout(() => this.follow(), 250); else requestAnimationFrame(() => this.follow());
    }

    show() {
      const { position, duration } = this;
      const share = duration ? position / duration : 0;
      this.scope.querySelector(".playhead").style.left = `calc(${(100 * share).toFixed(3)}% - 1px)`;
      const text = `${position.toFixed(1)} / ${duration.toFixed(1)} s`;
      if (this.time.textContent === text) return;
      this.time.textContent = text;
      this.scope.setAttribute("aria-valuenow", position.toFixed(1));
      this.scope.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
    }
  }

  // Pictures

  const colors = Uint8Array.from({ length: 1024 }, (_, place) => {
    const level = (place >> 2) / 255 * (STOPS.length - 1);
    const low = Math.min(Math.floor(level), STOPS.length - 2);
    const channel = place & 3;
    return channel === 3 ? 255 : Math.round(STOPS[low][channel] + (level - low) * (STOPS[low + 1][channel] - STOPS[low][channel]));
  });

  const hann = Float32Array.from({ length: FFT }, (_, n) => 0.5 - 0.5 * Math.cos(2 * Math.PI * n / FFT));
  const cosines = Float32Array.from({ length: FFT / 2 }, (_, k) => Math.cos(2 * Math.PI * k / FFT));
  const sines = Float32Array.from({ length: FFT / 2 }, (_, k) => -Math.sin(2 * Math.PI * k / FFT));
  const reversed = Uint16Array.from({ length: FFT }, (_, n) => {
    let place = 0;
    for (let bit = 1; bit < FFT; bit <<= 1) place = (place << 1) | (n & bit ? 1 : 0);
    return place;
  });

  // In place, radix 2; the input in bit-reversed order.
  function transform(real, imaginary) {
    for (let size = 2; size <= FFT; size <<= 1) {
      const half = size >> 1, stride = FFT / size;
      for (let start = 0; start < FFT; start += size) {
        for (let k = 0; k < half; k++) {
          const a = start + k, b = a + half, c = cosines[k * stride], s = sines[k * stride];
          const re = real[b] * c - imaginary[b] * s, im = real[b] * s + imaginary[b] * c;
          real[b] = real[a] - re; imaginary[b] = imaginary[a] - im;
          real[a] += re; imaginary[a] += im;
        }
      }
    }
  }

  // Log magnitudes of 32 ms windows as bytes, FLOOR to CEILING dB, in `columns` columns of FFT / 2 + 1 rows, low frequencies first.
  function spectrogram(samples, columns) {
    const rows = FFT / 2 + 1, levels = new Uint8Array(columns * rows);
    const real = new Float32Array(FFT), imaginary = new Float32Array(FFT);
    for (let column = 0; column < columns; column++) {
      const start = Math.round((column + 0.5) / columns * samples.length) - FFT / 2;
      for (let n = 0; n < FFT; n++) real[reversed[n]] = hann[n] * (samples[start + n] || 0);
      imaginary.fill(0);
      transform(real, imaginary);
      for (let k = 0; k < rows; k++) {
        const power = (real[k] * real[k] + imaginary[k] * imaginary[k]) / (FFT * FFT / 16);
        const level = (10 * Math.log10(power + 1e-12) - FLOOR) / (CEILING - FLOOR);
        levels[column * rows + k] = 255 * Math.min(Math.max(level, 0), 1);
      }
    }
    return { levels, columns, rows };
  }

  function paint(canvas, { levels, columns, rows }) {
    canvas.width = columns;
    canvas.height = rows;
    const image = new ImageData(columns, rows);
    for (let column = 0; column < columns; column++) {
      for (let k = 0; k < rows; k++) {
        const place = 4 * ((rows - 1 - k) * columns + column), color = 4 * levels[column * rows + k];
        for (let channel = 0; channel < 4; channel++) image.data[place + channel] = colors[color + channel];
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  const difference = (decoded, original) => decoded.map((sample, n) => sample - original[n]);

  function drawWaves(canvas, layers) { // [[samples, CSS color], ...], all to the scale of the first one's peak
    const scale = devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const peak = layers[0][0].reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-4) * 1.1;
    for (const [samples, color] of layers) {
      pen.fillStyle = style.getPropertyValue(color);
      for (let x = 0; x < canvas.width; x++) {
        const from = Math.floor(x / canvas.width * samples.length);
        const to = Math.max(from + 1, Math.floor((x + 1) / canvas.width * samples.length));
        let low = 0, high = 0;
        for (let n = from; n < to; n++) { low = Math.min(low, samples[n]); high = Math.max(high, samples[n]); }
        const top = canvas.height / 2 * (1 - high / peak), bottom = canvas.height / 2 * (1 - low / peak);
        pen.fillRect(x, top, 1, Math.max(bottom - top, 1));
      }
    }
  }

  // The player: a clip, and all its versions.

  const player = new Deck(byId("player"));
  const picker = [...document.querySelectorAll(".picker button")];
  const tables = [...document.querySelectorAll(".versions > div")];
  const choices = [...document.querySelectorAll(".choices .version")];
  const gallery = player.root.querySelector(".gallery");
  let clip = 0;
  let pictures = []; // of the clip: [{spectrogram, error} of each version], made when first seen

  const samplesOf = (version) => player.tracks[version].getChannelData(0);

  function pictureOf(version) {
    if (!pictures[version]) {
      const columns = Math.min(900, Math.ceil(samplesOf(0).length / 64));
      pictures[version] = {
        spectrogram: spectrogram(samplesOf(version), columns),
        error: spectrogram(difference(samplesOf(version), samplesOf(0)), columns),
      };
    }
    return pictures[version];
  }

  function draw() {
    if (!player.tracks.length) return;
    const canvas = (pane) => player.root.querySelector(`.${pane} canvas`), version = player.active;
    drawWaves(canvas("wave"), version ? [[samplesOf(0), "--behind"], [samplesOf(version), "--accent"]] : [[samplesOf(0), "--accent"]]);
    paint(canvas("spectrogram"), pictureOf(version).spectrogram);
    paint(canvas("error"), pictureOf(version).error);
  }

  function drawRuler() {
    const ruler = player.root.querySelector(".ruler"), step = player.duration > 4 ? 1 : 0.5;
    ruler.replaceChildren();
    for (let second = 0; second < player.duration - 0.2; second += step) {
      const tick = document.createElement("span");
      tick.textContent = second ? String(second) : "0 s";
      tick.style.left = `${100 * second / player.duration}%`;
      ruler.append(tick);
    }
  }

  function drawGallery() {
    const grid = gallery.querySelector(".grid");
    grid.replaceChildren();
    if (!gallery.open) return;
    facts.versions.forEach((label, version) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = label;
      figure.append(caption);
      for (const kind of version ? ["spectrogram", "error"] : ["spectrogram"]) {
        const canvas = document.createElement("canvas");
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `${label}: ${kind}`);
        paint(canvas, pictureOf(version)[kind]);
        figure.append(canvas);
      }
      grid.append(figure);
    });
  }

  function selectVersion(version) {
    if (version >= facts.versions.length) return;
    player.select(version);
    player.root.querySelector(".now-version").textContent = facts.versions[version];
    choices.forEach((button, index) => button.setAttribute("aria-pressed", String(index === version)));
    for (const table of tables) {
      table.querySelectorAll("tbody tr").forEach((row, index) => row.classList.toggle("chosen", index === version));
    }
    draw();
  }

  async function openClip(index) {
    clip = index;
    picker.forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
    tables.forEach((table, place) => { table.hidden = place !== index; });
    player.root.querySelector(".now-clip").textContent = facts.clips[index];
    player.load([], player.active);
    try {
      const tracks = await decode(index);
      if (clip !== index) return;
      pictures = [];
      player.load(tracks, player.active);
      drawRuler();
      selectVersion(player.active);
      drawGallery();
    } catch (error) {
      const problem = player.root.querySelector(".problem");
      problem.textContent = `This browser cannot decode the sound (FLAC): ${error.message}`;
      problem.hidden = false;
    }
  }

  picker.forEach((button, index) => button.addEventListener("click", () => openClip(index)));
  choices.forEach((button, index) => button.addEventListener("click", () => selectVersion(index)));
  for (const table of tables) { // its rows too, for the mouse; keys and readers have the buttons
    table.querySelectorAll("tbody tr").forEach((row, index) => row.addEventListener("click", () => selectVersion(index)));
  }
  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) target.nextElementSibling.hidden = target.scrollWidth <= target.clientWidth + 1;
  });
  for (const table of document.querySelectorAll(".scroll")) wide.observe(table);
  gallery.addEventListener("toggle", drawGallery);

  // The blind test: tracks A, B and X. Which of the two X is stays in `truth` until the answer.

  const abx = new Deck(byId("abx"));
  const hear = [...abx.root.querySelectorAll(".version")];
  const trial = abx.root.querySelector(".trial");
  const setup = [byId("choose-a"), byId("choose-b"), byId("choose-clip"), byId("abx-start")];
  const answers = [byId("answer-a"), byId("answer-b")];
  let truth = null, played = false, right = 0, trials = 0;

  function draws(count) { // an integer below count
    const word = new Uint32Array(1);
    crypto.getRandomValues(word);
    return Math.floor(word[0] / 2 ** 32 * count);
  }

  // The chance of at least `hits` heads in `flips` fair flips.
  function tail(hits, flips) {
    let share = 0.5 ** flips, sum = 0;
    for (let heads = 0; heads <= flips; heads++) {
      if (heads >= hits) sum += share;
      share *= (flips - heads) / (heads + 1);
    }
    return Math.min(sum, 1);
  }

  function listenTo(track) {
    abx.select(track);
    hear.forEach((button, index) => button.setAttribute("aria-pressed", String(index === track)));
  }

  function setPlayed(value) { // an answer is for what was heard
    played = value;
    for (const button of answers) button.disabled = !value;
  }
  abx.started = () => setPlayed(true);

  async function beginTrial() {
    trial.setAttribute("aria-busy", "true");
    setPlayed(false);
    const [a, b] = [Number(setup[0].value), Number(setup[1].value)];
    const chosen = setup[2].value === "any" ? draws(facts.clips.length) : Number(setup[2].value);
    const secret = draws(2);
    const versions = await decode(chosen);
    if (trial.hidden) return;
    abx.load([versions[a], versions[b], versions[secret ? b : a]], 0);
    listenTo(0);
    drawWaves(abx.root.querySelector(".wave canvas"), [[versions[0].getChannelData(0), "--soft"]]);
    abx.original = versions[0];
    truth = secret;
    trial.setAttribute("aria-busy", "false");
  }

  function start() {
    if (setup[0].value === setup[1].value) {
      byId("verdict").textContent = "A and B are the same version: choose two.";
      return;
    }
    byId("verdict").textContent = "";
    for (const control of setup) control.disabled = true;
    trial.hidden = false;
    current = abx;
    abx.playButton.focus();
    beginTrial();
  }

  function answer(guess) {
    if (truth === null) return;
    if (!played) {
      byId("verdict").textContent = "Play it first.";
      return;
    }
    const hit = guess === truth;
    const label = setup[truth].selectedOptions[0].textContent;
    trials += 1;
    right += hit ? 1 : 0;
    byId("verdict").textContent = `${hit ? "Right" : "Wrong"}: X was ${truth ? "B" : "A"}, ${label}.`;
    byId("score").textContent = `${right} of ${trials} right, p = ${tail(right, trials).toPrecision(2)}`;
    truth = null;
    abx.pause();
    abx.playButton.focus(); // the button that was pressed is off until the next is played
    beginTrial();
  }

  function reset() {
    abx.pause();
    truth = null;
    right = trials = 0;
    trial.hidden = true;
    for (const control of setup) control.disabled = false;
    byId("verdict").textContent = "";
    byId("score").textContent = "No trials yet.";
    setup[3].focus();
  }

  hear.forEach((button, index) => button.addEventListener("click", () => listenTo(index)));
  setup[3].addEventListener("click", start);
  answers.forEach((button, guess) => button.addEventListener("click", () => answer(guess)));
  byId("abx-reset").addEventListener("click", reset);

  // Keys

  function actOn(key, shift, onScope) {
    const step = shift ? 0.1 : 1, testing = current === abx && !trial.hidden;
    if (key === "arrowright" || (onScope && key === "arrowup")) current.seek(current.position + step);
    else if (key === "arrowleft" || (onScope && key === "arrowdown")) current.seek(current.position - step);
    else if (onScope && key === "home") current.seek(0);
    else if (onScope && key === "end") current.seek(current.duration);
    else if (key === "l") current.setLooping(!current.looping);
    else if (testing && "abx".includes(key)) listenTo("abx".indexOf(key));
    else if (testing && "12".includes(key)) answer(Number(key) - 1);
    else if (current === player && "123456789".includes(key)) selectVersion(Number(key) - 1);
    else return false;
    return true;
  }

  document.addEventListener("keydown", (event) => {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("select, summary, a, .scroll:focus")) return;
    if (event.key === " ") {
      // A button keeps its space bar, but for one that is pressed already and would do nothing.
      const idle = target.matches('.version[aria-pressed="true"], .picker [aria-pressed="true"]');
      if (target.closest("button") && !idle) return;
      if (!event.repeat) current.toggle();
    } else if (event.key.length > 1 && !/^(Arrow|Home|End)/.test(event.key)) {
      return;
    } else if (!actOn(event.key.toLowerCase(), event.shiftKey, target.closest(".scope"))) {
      return;
    }
    event.preventDefault();
  });

  function redraw() {
    draw();
    if (abx.original) drawWaves(abx.root.querySelector(".wave canvas"), [[abx.original.getChannelData(0), "--soft"]]);
  }

  const ramp = player.root.querySelector(".ramp");
  paint(ramp, { levels: Uint8Array.from({ length: 256 }, (_, n) => n), columns: 256, rows: 1 });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let drawnWidth = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; redraw(); } });
  current = player;
  openClip(0);
})();
