// Validation preprocessing of timm: the resampling of Pillow to the last bit, crop and normalisation.
// A picture is {width, height, channels, data}, with data a Uint8Array [height, width, channels].

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 22; // of Pillow's fixed-point weights

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Return the first source index and the fixed-point weights of each target index. */
function weights(source, target, [radius, filter]) {
  const scale = source / target;
  const stretch = Math.max(scale, 1); // antialiasing: a smaller picture averages over more pixels
  return Array.from({ length: target }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - radius * stretch + 0.5));
    const end = Math.min(source, Math.trunc(centre + radius * stretch + 0.5));
    const found = Float64Array.from({ length: end - first }, (_, i) => filter((i + first - centre + 0.5) * (1 / stretch)));
    const sum = found.reduce((total, value) => total + value, 0);
    return [first, found.map((value) => Math.trunc((value / sum) * 2 ** BITS + (value < 0 ? -0.5 : 0.5)))];
  });
}

/** Resample along one axis: `step` values lie between neighbours, and lines start at the multiples of `starts`. */
function resample(data, table, lines, lineStep, step, channels, out, outLineStep, outStep) {
  for (let line = 0; line < lines; line++) {
    table.forEach(([first, factors], place) => {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 2 ** (BITS - 1);
        let from = line * lineStep + first * step + channel;
        for (let i = 0; i < factors.length; i++, from += step) sum += data[from] * factors[i];
        out[line * outLineStep + place * outStep + channel] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
      }
    });
  }
}

/** Resize a picture as `PIL.Image.resize` does. */
export function resize(picture, width, height, interpolation) {
  const channels = picture.channels;
  if (interpolation === "nearest") return nearest(picture, width, height);
  let { data } = picture;
  if (width !== picture.width) {
    const table = weights(picture.width, width, FILTERS[interpolation]);
    const out = new Uint8Array(width * picture.height * channels);
    resample(data, table, picture.height, picture.width * channels, channels, channels, out, width * channels, channels);
    data = out;
  }
  if (height !== picture.height) {
    const table = weights(picture.height, height, FILTERS[interpolation]);
    const out = new Uint8Array(width * height * channels);
    resample(data, table, width, channels, width * channels, channels, out, channels, width * channels);
    data = out;
  }
  return { width, height, channels, data };
}

function nearest(picture, width, height) {
  const { channels } = picture;
  const out = new Uint8Array(width * height * channels);
  const [rows, columns] = [sources(picture.height, height), sources(picture.width, width)];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (rows[y] * picture.width + columns[x]) * channels;
      for (let c = 0; c < channels; c++) out[(y * width + x) * channels + c] = picture.data[from + c];
    }
  }
  return { width, height, channels, data: out };
}

/** Return the nearest source index of each target index, with the rounding of Pillow, which adds up the steps. */
function sources(source, target) {
  let place = (source / target) * 0.5;
  return Array.from({ length: target }, () => {
    const found = Math.floor(place);
    place += source / target;
    return found;
  });
}

/** Round halves to even, as Python does. */
function round(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

/** Cut out a window, which may reach over the border; pixels outside have the colour `fill`. */
function cut(picture, left, top, width, height, fill) {
  const { channels } = picture;
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const inside = x + left >= 0 && x + left < picture.width && y + top >= 0 && y + top < picture.height;
      const from = ((y + top) * picture.width + x + left) * channels;
      for (let c = 0; c < channels; c++) {
        out[(y * width + x) * channels + c] = inside ? picture.data[from + c] : (fill[c] ?? 0);
      }
    }
  }
  return { width, height, channels, data: out };
}

/** Return where a window of the target's side starts in the source: centred, padded if the source is smaller. */
const start = (source, target) =>
  target > source ? -Math.floor((target - source) / 2) : round((source - target) / 2);

/** Return height and width of the resized picture before the crop. */
function resizedSize(picture, config) {
  const [height, width] = config.size.map((side) => Math.floor(side / config.crop_pct));
  if (config.crop_mode === "squash") return [height, width];
  const ratios = [picture.height / height, picture.width / width];
  if (config.crop_mode === "border" || height !== width) {
    const ratio = config.crop_mode === "border" ? Math.max(...ratios) : Math.min(...ratios);
    return [round(picture.height / ratio), round(picture.width / ratio)];
  }
  const short = Math.min(picture.height, picture.width);
  return [picture.height, picture.width].map((side) =>
    side === short ? height : Math.trunc((height * side) / short));
}

/**
 * Resize and crop a picture as timm's evaluation transform does.
 * @returns the fitted picture, and `window`: [x, y, width, height] of its content in pixels of the original.
 */
export function fit(picture, config) {
  const [height, width] = config.size;
  if (config.task === "segmentation") return fitInside(picture, width, height);
  const [tall, wide] = resizedSize(picture, config);
  const resized = resize(picture, wide, tall, config.interpolation);
  const [left, top] = [start(wide, width), start(tall, height)];
  const fill = config.crop_mode === "border" ? config.mean.map((value) => round(255 * value)) : [];
  const [x, y] = [picture.width / wide, picture.height / tall];
  return { picture: cut(resized, left, top, width, height, fill), window: [left * x, top * y, width * x, height * y] };
}

/** Segmentation networks see pictures at their own size; larger ones are made smaller to fit at the top left. */
function fitInside(picture, width, height) {
  const scale = Math.min(1, width / picture.width, height / picture.height);
  const size = [picture.width, picture.height].map((side) => Math.max(1, Math.floor(side * scale)));
  return { picture: resize(picture, ...size, "bilinear"), window: [0, 0, picture.width, picture.height] };
}

/** Normalise a picture to a Float32Array [channels, height, width]; what it does not cover stays 0. */
export function normalise(picture, config) {
  const [height, width] = config.size;
  const out = new Float32Array(picture.channels * height * width);
  const f = Math.fround;
  for (let c = 0; c < picture.channels; c++) {
    const [mean, std] = [f(config.mean[c % config.mean.length]), f(config.std[c % config.std.length])];
    for (let y = 0; y < picture.height; y++) {
      for (let x = 0; x < picture.width; x++) {
        const value = picture.data[(y * picture.width + x) * picture.channels + c];
        out[(c * height + y) * width + x] = f(f(f(value / 255) - mean) / std);
      }
    }
  }
  return out;
}

/** Convert the pixels of a canvas to a picture with 1 (Pillow's weights) or 3 channels. */
export function fromPixels({ width, height, data }, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let i = 0, from = 0; i < width * height; i++, from += 4) {
    if (channels === 1) out[i] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16;
    else out.set(data.subarray(from, from + 3), i * 3);
  }
  return { width, height, channels, data: out };
}
