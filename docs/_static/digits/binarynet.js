// A BinaryNet for grey images on one-bit numbers: XOR and population count. It reads the file that
// `python -m training.export RUN --to bits` writes, of a network with `first_padding` "SAME".

// ---- The file: safetensors, a binary array as one bit for each weight, 1 for −1 ----

/** Reads a file's tensors: {name: {shape, values}}; the values of one-bit arrays are ±1. */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(
    new TextDecoder().decode(new Uint8Array(buffer, 8, length)),
  );
  const oneBit = JSON.parse(metadata.bop_optax).one_bit;
  const arrays = { F32: Float32Array, I32: Int32Array, I8: Int8Array, U8: Uint8Array };
  const tensors = {};
  for (const [
    name,
    {
      dtype,
      shape,
      data_offsets: [start, end],
    },
  ] of Object.entries(entries)) {
    if (8 + length + end > buffer.byteLength) throw new Error(`the file ends within ${name}`);
    if (name.endsWith("/scale")) throw new Error("the kernels are not ±1");
    const values = new arrays[dtype](buffer.slice(8 + length + start, 8 + length + end));
    tensors[name] = name in oneBit ? unpack(values, oneBit[name].shape) : { shape, values };
  }
  return tensors;
}

function unpack(bytes, shape) {
  const values = new Int8Array(shape.reduce((a, b) => a * b, 1));
  values.forEach((_, i) => (values[i] = (bytes[i >> 3] >> (i & 7)) & 1 ? -1 : 1));
  return { shape, values };
}

// ---- Bits: 32 signs in each word, 1 for −1 ----

function pack(signs) {
  const words = new Uint32Array(Math.ceil(signs.length / 32));
  signs.forEach((sign, i) => (words[i >> 5] |= (sign < 0) << (i & 31)));
  return words;
}

function countOnes(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** The sum of `length` products of ±1. */
function dot(a, b, length) {
  let negative = 0;
  for (let i = 0; i < a.length; i++) negative += countOnes(a[i] ^ b[i]);
  return length - 2 * negative;
}

// ---- Layers. A map is an array of pixels, row by row; a pixel is an array of channels ----

/** The kernel of each tap and output: an array of ±1, one for each input. */
function kernelRows({ shape, values }) {
  const [inputs, outputs] = shape.slice(-2);
  const taps = values.length / (inputs * outputs);
  return Array.from({ length: taps }, (_, tap) =>
    Array.from({ length: outputs }, (_, out) =>
      Array.from({ length: inputs }, (_, i) => values[(tap * inputs + i) * outputs + out]),
    ),
  );
}

/** A 3×3 convolution; a tap outside of the map adds nothing. */
function convolve(pixels, side, rows, product) {
  return pixels.map((_, place) => {
    const [row, column] = [Math.floor(place / side), place % side];
    const sums = new Array(rows[0].length).fill(0);
    for (let tap = 0; tap < 9; tap++) {
      const [r, c] = [row + Math.floor(tap / 3) - 1, column + (tap % 3) - 1];
      if (r < 0 || c < 0 || r >= side || c >= side) continue;
      rows[tap].forEach((weights, out) => (sums[out] += product(pixels[r * side + c], weights)));
    }
    return sums;
  });
}

function maxPool(pixels, side) {
  const half = side / 2;
  return Array.from({ length: half * half }, (_, place) => {
    const corner = 2 * Math.floor(place / half) * side + 2 * (place % half);
    const window = [corner, corner + 1, corner + side, corner + side + 1].map((i) => pixels[i]);
    return window[0].map((_, channel) => Math.max(...window.map((pixel) => pixel[channel])));
  });
}

// ---- The network ----

/** Makes `network(image)` of a file; an image is side × side bytes, 0 for black. */
export function binaryNet(buffer, side = 8) {
  const tensors = readTensors(buffer);
  const listed = (list, ...names) => {
    const items = [];
    while (`${list}/${items.length}/${names[0]}` in tensors) {
      items.push(names.map((name) => tensors[`${list}/${items.length}/${name}`]));
    }
    return items;
  };
  const convs = listed("convs", "kernel");
  const layers = [...convs, ...listed("denses", "kernel")].map(([kernel], i) => ({
    inputs: kernel.shape.at(-2),
    rows: kernelRows(kernel).map((tap) => (i ? tap.map(pack) : tap)),
  }));
  const thresholds = listed("norms", "threshold", "direction");
  const pooled = side / 2 ** (convs.length / 2); // the side of the last map
  const fits =
    thresholds.length === layers.length - 1 &&
    layers[0].inputs === 1 &&
    Number.isInteger(pooled) &&
    layers[convs.length].inputs === pooled ** 2 * convs.at(-1)[0].shape.at(-1);
  if (!fits) throw new Error(`this is no folded BinaryNet for grey images of ${side}×${side}`);

  const [mean, variance, bias] = ["mean", "var", "bias"].map(
    (name) => tensors[`norms/${thresholds.length}/${name}`].values,
  );
  const sign = ([threshold, direction], sum, channel) =>
    direction.values[channel] * sum >= threshold.values[channel] ? 1 : -1;

  /** Computes the logits, and the sums of each layer. */
  return (image) => {
    // The first layer adds and subtracts (byte − 127.5) / 127.5; its sums are integers / 255.
    let map = Array.from(image, (byte) => [2 * byte - 255]);
    let width = side;
    const sums = [];
    layers.forEach(({ inputs, rows }, i) => {
      if (i === convs.length) map = [map.flat()];
      const product = i ? (a, b) => dot(a, b, inputs) : ([x], [w]) => (x * w) / 255;
      if (i) map = map.map(pack);
      map =
        i < convs.length
          ? convolve(map, width, rows, product)
          : [rows[0].map((weights) => product(map[0], weights))];
      sums.push(map.flat());
      if (i < convs.length && i % 2) {
        map = maxPool(map, width);
        width /= 2;
      }
      if (i < thresholds.length) {
        map = map.map((pixel) => pixel.map((sum, channel) => sign(thresholds[i], sum, channel)));
      }
    });
    const logits = map[0].map((sum, channel) => {
      const scale = 1 / Math.sqrt(variance[channel] + 1e-3);
      return (sum - mean[channel]) * scale + bias[channel];
    });
    return { logits, sums };
  };
}
