// The page's drawing: strokes to an 8×8 image as in the data set, the image to a class.
const GRID = 32; // the data set's bitmaps, of which each pixel of an image counts 4×4 points
const element = (id) => document.getElementById(id);
const canvas = element("drawing");
const strokes = [];

/** Draws lines through the points of each stroke. */
function draw(context, width, lines) {
  context.fillStyle = "black";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  Object.assign(context, {
    strokeStyle: "white",
    lineWidth: width,
    lineCap: "round",
    lineJoin: "round",
  });
  for (const points of lines) {
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.lineTo(...points.at(-1)); // a single point is a dot
    context.stroke();
  }
}

/** The 8×8 bytes of the strokes: fitted to a 32×32 bitmap, then 0 to 16 points a pixel. */
function image() {
  const ink = 5; // the width of a line among the 32 points
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  const [left, right, top, bottom] = [
    Math.min(...xs),
    Math.max(...xs),
    Math.min(...ys),
    Math.max(...ys),
  ];
  const scale = Math.min(
    (GRID - ink) / (bottom - top || 1),
    (GRID - 2 * ink) / (right - left || 1),
  );
  const fit = ([x, y]) => [
    GRID / 2 + scale * (x - (left + right) / 2),
    GRID / 2 + scale * (y - (top + bottom) / 2),
  ];
  const bitmap = new OffscreenCanvas(GRID, GRID).getContext("2d");
  draw(
    bitmap,
    ink,
    strokes.map((points) => points.map(fit)),
  );
  const rgba = bitmap.getImageData(0, 0, GRID, GRID).data;
  const counts = new Array(64).fill(0);
  for (let i = 0; i < GRID * GRID; i++) {
    counts[8 * Math.floor(i / GRID / 4) + Math.floor((i % GRID) / 4)] += rgba[4 * i] > 127;
  }
  return counts.map((points) => Math.round((points * 255) / 16));
}

function showImage(bytes) {
  const context = element("seen").getContext("2d");
  const rgba = bytes.flatMap((byte) => [byte, byte, byte, 255]);
  context.putImageData(new ImageData(new Uint8ClampedArray(rgba), 8, 8), 0, 0);
}

function showClasses(logits) {
  const weights = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const total = weights.reduce((a, b) => a + b);
  const best = strokes.length ? logits.indexOf(Math.max(...logits)) : -1;
  element("classes").replaceChildren(
    ...weights.map((weight, digit) => {
      const row = document.createElement("div");
      row.className = digit === best ? "best" : "";
      row.innerHTML = `<span>${digit}</span><meter value="${weight / total}"></meter>`;
      row.append(`${Math.round((100 * weight) / total)} %`);
      return row;
    }),
  );
  element("answer").textContent = strokes.length ? `This is ${best}.` : "Draw a digit.";
}

function classify(network) {
  if (!strokes.length) return;
  const bytes = image();
  const start = performance.now();
  const { logits } = network(bytes);
  const milliseconds = performance.now() - start;
  showImage(bytes);
  showClasses(logits);
  element("time").textContent = `${milliseconds.toFixed(1)} ms`;
}

function clear() {
  strokes.length = 0;
  draw(canvas.getContext("2d"), 18, strokes);
  showImage(new Array(64).fill(0));
  showClasses(new Array(10).fill(0));
  element("time").textContent = "";
}

function addPoint(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  strokes.at(-1).push([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]);
  draw(canvas.getContext("2d"), 18, strokes);
}

try {
  const { binaryNet } = await import("./binarynet.js");
  const response = await fetch(new URL("digits.safetensors", import.meta.url));
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  const network = binaryNet(await response.arrayBuffer());
  clear();
  canvas.onpointerdown = (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    strokes.push([]);
    addPoint(event);
  };
  canvas.onpointermove = (event) =>
    event.isPrimary && event.buttons && strokes.length && addPoint(event);
  canvas.onpointerup = () => classify(network);
  canvas.onpointercancel = canvas.onpointerup;
  element("clear").onclick = clear;
} catch (error) {
  element("answer").textContent = `The network could not be loaded: ${error.message}`;
}
