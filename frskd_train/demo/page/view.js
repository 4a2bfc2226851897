// What the page draws: bars, the attention map and the mask.

const INFERNO = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96], [207, 68, 70], [237, 105, 37], [251, 155, 6],
  [247, 209, 61], [252, 255, 164],
];

function inferno(value) {
  const place = Math.min(Math.max(value, 0), 1) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[low].map((channel, i) => channel + (INFERNO[low + 1][i] - channel) * (place - low));
}

/** Show the labels with the largest shares (0..1) as bars; `colours` are marked beside the names. */
export function showBars(list, shares, names, colours) {
  const best = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 5);
  list.replaceChildren(...best.filter((label) => !colours || shares[label] > 0).map((label) => {
    const [item, name, percent, track, fill] = ["li", "span", "span", "div", "div"].map((tag) => document.createElement(tag));
    name.className = "name";
    name.textContent = names[label] ?? `class ${label}`;
    percent.className = "percent";
    percent.textContent = `${(100 * shares[label]).toFixed(1)}%`;
    track.className = "track";
    fill.className = "fill";
    fill.style.width = `${100 * shares[label]}%`;
    if (colours) fill.style.background = colours[label];
    track.append(fill);
    item.append(name, percent, track);
    return item;
  }));
  return best;
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

/** Return the class of each pixel and each class's share of a picture within logits [classes, height, width]. */
export function labelPixels(logits, [, classes, height, width], picture) {
  const labels = new Uint16Array(picture.width * picture.height);
  const shares = new Array(classes).fill(0);
  for (let y = 0; y < picture.height; y++) {
    for (let x = 0; x < picture.width; x++) {
      let best = 0;
      const at = (label) => logits[(label * height + y) * width + x];
      for (let label = 1; label < classes; label++) if (at(label) > at(best)) best = label;
      labels[y * picture.width + x] = best;
      shares[best] += 1 / labels.length;
    }
  }
  return { labels, shares };
}

/** Draw a window [x, y, width, height] of a source canvas, at least 448 pixels wide. */
function drawWindow(canvas, source, [x, y, width, height]) {
  canvas.width = 448;
  canvas.height = Math.round((448 * height) / width);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const factor = canvas.width / width;
  context.imageSmoothingEnabled = source.width > 64; // tiny pictures show their pixels
  context.drawImage(source, -x * factor, -y * factor, source.width * factor, source.height * factor);
  return [context, context.getImageData(0, 0, canvas.width, canvas.height)];
}

/** Draw an attention map [height, width], scaled to 0..1, over the grey picture. */
export function drawAttention(canvas, source, window, values, [, height, width], strength) {
  const [context, pixels] = drawWindow(canvas, source, window);
  const low = Math.min(...values);
  const span = Math.max(Math.max(...values) - low, 1e-12);
  for (let y = 0; y < canvas.height; y++) {
    const row = between(((y + 0.5) * height) / canvas.height - 0.5, height);
    for (let x = 0; x < canvas.width; x++) {
      const column = between(((x + 0.5) * width) / canvas.width - 0.5, width);
      let value = 0;
      for (const [i, a] of row) for (const [j, b] of column) value += a * b * values[i * width + j];
      blend(pixels.data, (y * canvas.width + x) * 4, inferno((value - low) / span), strength, true);
    }
  }
  context.putImageData(pixels, 0, 0);
}

/** Return the two neighbours of a place and their weights (bilinear). */
function between(place, count) {
  const low = Math.floor(place);
  const clamp = (i) => Math.min(Math.max(i, 0), count - 1);
  return [[clamp(low), 1 - place + low], [clamp(low + 1), place - low]];
}

/** Draw the classes of the pixels over the picture; class 0 leaves it as it is. */
export function drawMask(canvas, source, window, labels, picture, colours, strength) {
  const [context, pixels] = drawWindow(canvas, source, window);
  const rgb = colours.map((colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.floor((y * picture.height) / canvas.height) * picture.width;
    for (let x = 0; x < canvas.width; x++) {
      const label = labels[row + Math.floor((x * picture.width) / canvas.width)];
      if (label) blend(pixels.data, (y * canvas.width + x) * 4, rgb[label], strength, false);
    }
  }
  context.putImageData(pixels, 0, 0);
}

function blend(data, at, colour, strength, grey) {
  const mean = (data[at] + data[at + 1] + data[at + 2]) / 3;
  for (let c = 0; c < 3; c++) {
    data[at + c] = strength * colour[c] + (1 - strength) * (grey ? mean : data[at + c]);
  }
  data[at + 3] = 255;
}
