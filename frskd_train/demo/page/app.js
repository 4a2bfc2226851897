import * as ort from "./ort/ort.wasm.min.mjs";
import { fit, fromPixels, normalise } from "./preprocess.js";
import { drawAttention, drawMask, labelPixels, showBars, softmax } from "./view.js";

const LARGEST = 16e6; // pixels; phones cannot read larger canvases
const element = (id) => document.getElementById(id);
const status = element("status");
const pad = element("pad").getContext("2d", { willReadFrequently: true });
let config, session, shown; // `shown`: the last picture and what the network said about it
let queue = Promise.resolve();

async function start() {
  config = await (await fetch("demo.json")).json();
  document.title = element("title").textContent = config.title;
  element("summary").textContent = config.summary;
  element("details").textContent = config.details;
  element("method").textContent = config.method;
  preparePad();
  showExamples();
  ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
  ort.env.wasm.numThreads = 1; // more need headers that static pages cannot set
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const sizes = session.outputMetadata.slice(1).map(({ shape }) => shape.slice(1)); // [height, width]
  element("level-label").hidden = sizes.length < 2;
  element("level").append(...sizes.map((size, i) => new Option(`${i + 1}: ${size.join("×")}`, i)));
  // The deepest level that shows places.
  element("level").value = Math.max(sizes.findLastIndex((size) => Math.min(...size) >= 5), 0);
  status.textContent = "Ready: open or draw a picture.";
  document.body.dataset.ready = "";
  element("examples").querySelector("button")?.click();
}

/** Read a file as a canvas: upright, its own colours, transparency on black. */
async function decode(blob) {
  const options = { colorSpaceConversion: "none" };
  let image = await createImageBitmap(blob, options);
  const pixels = image.width * image.height;
  if (pixels > LARGEST) {
    const resizeWidth = Math.floor(image.width * Math.sqrt(LARGEST / pixels));
    image = await createImageBitmap(image, { resizeWidth, resizeQuality: "high" });
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return canvas;
}

/** Run the network on a canvas and show what it says. */
async function predict(canvas) {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const fitted = fit(fromPixels(pixels, config.channels), config);
  const images = new ort.Tensor("float32", normalise(fitted.picture, config), [1, config.channels, ...config.size]);
  const before = performance.now();
  const outputs = await session.run({ images });
  element("time").textContent = `${(performance.now() - before).toFixed(0)} ms`;
  const { data: logits, dims } = outputs.logits;
  shown = { canvas, ...fitted, outputs };
  if (config.task === "segmentation") Object.assign(shown, labelPixels(logits, dims, fitted.picture));
  else shown.shares = softmax(logits);
  const [best] = showBars(element("bars"), shown.shares, config.classes, config.colours);
  status.textContent = "";
  element("overlay").hidden = config.task !== "segmentation" && session.outputNames.length < 2;
  element("view").ariaLabel = config.task === "segmentation" ? "Mask over the picture" : "Attention map over the picture";
  element("caption").textContent = config.caption;
  draw();
  document.dispatchEvent(new CustomEvent("prediction", { detail: { logits: Array.from(logits), best } }));
}

function draw() {
  if (!shown || element("overlay").hidden) return;
  const strength = element("strength").value / 100;
  const rest = [element("view"), shown.canvas, shown.window];
  if (config.task === "segmentation") return drawMask(...rest, shown.labels, shown.picture, config.colours, strength);
  const map = shown.outputs[`attention_${Number(element("level").value) + 1}`];
  drawAttention(...rest, map.data, map.dims, strength);
}

/** Run one task after the other, and show what went wrong. */
function enqueue(task) {
  queue = queue.then(async () => {
    status.classList.remove("problem");
    await task();
  }).catch((error) => {
    status.textContent = error.message ?? String(error);
    status.classList.add("problem");
  });
}

function openFile(blob) {
  if (!blob) return;
  enqueue(async () => {
    let canvas;
    try {
      canvas = await decode(blob);
    } catch {
      throw new Error("This file is not a picture that the browser can read; try a PNG or JPEG file.");
    }
    showPanel("file");
    const preview = element("preview");
    [preview.width, preview.height] = [canvas.width, canvas.height];
    preview.getContext("2d").drawImage(canvas, 0, 0);
    preview.style.imageRendering = canvas.width > 64 ? "auto" : "pixelated";
    preview.hidden = false;
    await predict(canvas);
  });
}

function showPanel(name) {
  for (const panel of ["file", "draw"]) {
    element(`${panel}-panel`).hidden = panel !== name;
    element(`show-${panel}`).ariaPressed = String(panel === name);
  }
}

function showExamples() {
  element("examples").append(...config.examples.map(({ file, name }) => {
    const [button, image] = [document.createElement("button"), document.createElement("img")];
    button.type = "button";
    image.src = file;
    image.alt = `Example: ${name}`;
    button.append(image);
    button.addEventListener("click", async () => openFile(await (await fetch(file)).blob()));
    return button;
  }));
}

function preparePad() {
  const mean = config.mean.reduce((sum, value) => sum + value, 0) / config.mean.length;
  const dark = mean < 0.4; // draw as the training images are: bright on dark, or dark on bright
  element("colour").value = dark ? "#ffffff" : "#1a1a1a";
  const clear = () => {
    pad.fillStyle = dark ? "#000000" : "#ffffff";
    pad.fillRect(0, 0, pad.canvas.width, pad.canvas.height);
  };
  clear();
  element("clear").addEventListener("click", clear);
  let last = null;
  const place = (event) => {
    const box = pad.canvas.getBoundingClientRect();
    const factor = pad.canvas.width / box.width;
    return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
  };
  const line = (event) => {
    const next = place(event);
    pad.lineWidth = element("width").value;
    pad.lineCap = pad.lineJoin = "round";
    pad.strokeStyle = element("colour").value;
    pad.beginPath();
    pad.moveTo(...last);
    pad.lineTo(...next);
    pad.stroke();
    last = next;
  };
  pad.canvas.addEventListener("pointerdown", (event) => {
    pad.canvas.setPointerCapture(event.pointerId);
    last = place(event);
    line(event);
  });
  pad.canvas.addEventListener("pointermove", (event) => last && line(event));
  for (const end of ["pointerup", "pointercancel"]) {
    pad.canvas.addEventListener(end, () => {
      last = null;
      enqueue(() => predict(pad.canvas));
    });
  }
}

element("show-file").addEventListener("click", () => showPanel("file"));
element("show-draw").addEventListener("click", () => showPanel("draw"));
element("file").addEventListener("change", (event) => {
  openFile(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
element("level").addEventListener("change", draw);
element("strength").addEventListener("input", draw);
addEventListener("paste", (event) => openFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  openFile(event.dataTransfer.files[0]);
});
enqueue(start);
