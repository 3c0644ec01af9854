// An image with its polygons on a canvas. Screen = scale × image + offset, in CSS pixels; image coordinates are pixel
// corners here: the image covers [0, width] × [0, height].
//
// Format 0.2 means pixel centres: the point (0, 0) is the middle of the first pixel, which is (0.5, 0.5) in corners.
import { h, number } from "./dom.js";
import { connection, get, url } from "./api.js";

const HALF = 0.5; // from pixel centres to pixel corners
const LINE = 1.6; // CSS pixels
const COLOURS = ["#ff3c3c", "#00c8ff", "#ffdc00", "#3ce646", "#dc46ff", "#ff8c00", "#1ef0e6", "#826eff", "#ff3ca0", "#beff1e",
  "#3278ff", "#ff78be"];
const MOST_ZOOM = 64;
const MANY = 1000; // outlines
const LARGEST = 2048; // of a whole picture; parts of larger images are fetched as they are looked at

/** The colour of a label in a sorted list of labels. */
export const colour = (index) => COLOURS[index % COLOURS.length];

export class Viewer {
  constructor(job, { onTip, onStep }) {
    this.job = job;
    this.onTip = onTip;
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": "Image with outlines. Left and right arrows change the image, plus and minus zoom, 0 fits." });
    this.tip = h("div", { class: "tip", hidden: true });
    const tool = (sign, name, act) => h("button", { type: "button", title: name, "aria-label": name, onclick: act }, sign);
    this.element = h("div", { class: "stage" }, this.canvas, this.tip, h("div", { class: "tools" },
      tool("+", "Zoom in (+)", () => this.zoom(1.5)), tool("−", "Zoom out (−)", () => this.zoom(1 / 1.5)),
      tool("⤢", "Fit (0)", () => this.fit()), tool("◐", "Outlines on and off (o)", () => this.toggle())));
    Object.assign(this, { objects: [], visible: [], paths: [], image: null, detail: null, scale: 1, x: 0, y: 0, width: 1, height: 1,
      outlines: true, hovered: -1, turn: 0, labels: [] });
    this.listen(onStep);
    new ResizeObserver(() => this.resize()).observe(this.element);
  }

  /** Show image `index`; `picture` is its row of GET /jobs/{id}/images. Polygons come with `polygons`. */
  async show(picture, polygons, labels) {
    const turn = this.turn += 1;
    const source = url(`/jobs/${this.job}/images/${picture.index}?size=${LARGEST}`);
    const [image, found] = await Promise.all([decoded(source), polygons ? get(`/jobs/${this.job}/polygons/${picture.index}`) : null]);
    if (turn !== this.turn) return false; // somebody went on meanwhile
    const same = this.width === picture.width && this.height === picture.height && this.image;
    Object.assign(this, { picture, image, detail: null, width: picture.width, height: picture.height, hovered: -1, labels });
    this.objects = found ? found.objects.map(outline) : [];
    this.filter(() => true);
    if (!same) this.fit();
    this.canvas.setAttribute("aria-label", `${picture.name}: ${number(this.objects.length)} objects. Left and right arrows change the image, plus and minus zoom, 0 fits.`);
    return true;
  }

  /** Show only the objects that `wanted(object)` takes. */
  filter(wanted) {
    this.visible = this.objects.filter(wanted);
    const single = this.labels.length < 2; // one class: neighbours are told apart instead
    const groups = new Map();
    this.visible.forEach((object) => {
      const hue = colour(single ? this.objects.indexOf(object) : this.labels.indexOf(object.label));
      if (!groups.has(hue)) groups.set(hue, new Path2D());
      groups.get(hue).addPath(object.path);
    });
    this.paths = [...groups];
    this.hovered = -1;
    this.paint();
  }

  toggle() { this.outlines = !this.outlines; this.paint(); }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.element;
    this.scale = Math.min(width / this.width, height / this.height) || 1;
    this.x = (width - this.width * this.scale) / 2;
    this.y = (height - this.height * this.scale) / 2;
    this.moved();
  }

  /** Zoom by a factor; the image point under (x, y) of the stage stays where it is. */
  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const least = Math.min(this.element.clientWidth / this.width, this.element.clientHeight / this.height, 1) / 2;
    const scale = Math.min(Math.max(this.scale * factor, least), MOST_ZOOM);
    this.x = x - (x - this.x) * (scale / this.scale);
    this.y = y - (y - this.y) * (scale / this.scale);
    this.scale = scale;
    this.moved();
  }

  moved() {
    this.moving = true;
    this.paint();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.moving = false; this.paint(); this.refine(); }, 150);
  }

  resize() {
    const dense = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    if (this.image) this.fit();
  }

  /** Where the picture is coarser than the screen, fetch the part that is looked at. */
  async refine() {
    if (!this.image || this.image.width >= this.width || this.scale * devicePixelRatio <= (this.image.width / this.width) * 1.2) {
      this.detail = null;
      return;
    }
    const left = Math.max(Math.floor(-this.x / this.scale), 0), top = Math.max(Math.floor(-this.y / this.scale), 0);
    const width = Math.min(Math.ceil(this.element.clientWidth / this.scale) + 1, this.width - left);
    const height = Math.min(Math.ceil(this.element.clientHeight / this.scale) + 1, this.height - top);
    if (width < 1 || height < 1) return;
    const { turn } = this;
    try {
      const image = await decoded(url(`/jobs/${this.job}/images/${this.picture.index}?size=${LARGEST}&region=${left},${top},${width},${height}`));
      if (turn === this.turn) { this.detail = { image, left, top, width, height }; this.paint(); }
    } catch {
      connection("detail", true); // the coarse picture stays
    }
  }

  paint() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    const dense = this.canvas.width / (this.element.clientWidth || 1);
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#0b0f0e";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    context.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.x * dense, this.y * dense);
    context.imageSmoothingEnabled = this.scale < 2; // from there on, people want to see pixels
    context.drawImage(this.image, 0, 0, this.width, this.height);
    if (this.detail) context.drawImage(this.detail.image, this.detail.left, this.detail.top, this.detail.width, this.detail.height);
    if (this.outlines) this.drawOutlines(context, dense);
    const hovered = this.objects[this.hovered];
    if (hovered && this.outlines) {
      context.fillStyle = "rgb(255 255 255 / 25%)";
      context.fill(hovered.path);
      context.lineWidth = (LINE * 1.6) / this.scale;
      context.strokeStyle = "#ffffff";
      context.stroke(hovered.path);
    }
  }

  /** Of many outlines, a picture is moved along while somebody moves; they are drawn anew when the hand rests. */
  drawOutlines(context, dense) {
    const view = [this.scale, this.x, this.y, dense, this.canvas.width, this.canvas.height];
    if (this.visible.length < MANY) { this.stroke(context); return; }
    const drawn = this.layer;
    if (drawn?.paths === this.paths && String(drawn.view) === String(view)) {
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.drawImage(drawn.canvas, 0, 0);
    } else if (drawn?.paths === this.paths && drawn.view[3] === dense && this.moving) {
      const [scale, x, y] = drawn.view, zoom = this.scale / scale;
      context.setTransform(zoom, 0, 0, zoom, (this.x - x * zoom) * dense, (this.y - y * zoom) * dense);
      context.drawImage(drawn.canvas, 0, 0);
    } else {
      const canvas = new OffscreenCanvas(this.canvas.width, this.canvas.height);
      const inner = canvas.getContext("2d");
      inner.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.x * dense, this.y * dense);
      this.stroke(inner);
      this.layer = { canvas, view, paths: this.paths };
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.drawImage(canvas, 0, 0);
    }
    context.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.x * dense, this.y * dense);
  }

  stroke(context) {
    context.lineJoin = "round";
    context.lineWidth = LINE / this.scale;
    for (const [hue, path] of this.paths) { context.strokeStyle = hue; context.stroke(path); }
  }

  /** Which object is under a point of the stage; the smallest, where several are. */
  at(x, y) {
    const px = (x - this.x) / this.scale, py = (y - this.y) / this.scale;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    let best = null;
    for (const object of this.visible) {
      const [left, top, right, bottom] = object.box;
      if (px < left || px > right || py < top || py > bottom || !context.isPointInPath(object.path, px, py)) continue;
      if (!best || (right - left) * (bottom - top) < (best.box[2] - best.box[0]) * (best.box[3] - best.box[1])) best = object;
    }
    return best ? this.objects.indexOf(best) : -1;
  }

  hover(x, y) {
    const found = this.outlines ? this.at(x, y) : -1;
    if (found === this.hovered) return;
    this.hovered = found;
    const object = this.objects[found];
    this.tip.hidden = !object;
    if (object) this.tip.textContent = `${object.label} ${found + 1}${object.score === null ? "" : ` · score ${object.score.toFixed(2)}`}`;
    this.paint();
  }

  listen(onStep) {
    const { canvas } = this;
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      canvas.classList.add("dragging");
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) { this.hover(event.offsetX, event.offsetY); return; }
      const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
      if (other) {
        const far = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
        this.zoom(far(event) / far(before), (event.offsetX + other.offsetX) / 2, (event.offsetY + other.offsetY) / 2);
      } else {
        this.x += event.clientX - before.clientX;
        this.y += event.clientY - before.clientY;
        this.moved();
      }
      pointers.set(event.pointerId, event);
    });
    for (const over of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(over, (event) => { pointers.delete(event.pointerId); canvas.classList.toggle("dragging", pointers.size > 0); });
    }
    canvas.addEventListener("pointerleave", () => this.hover(-1e9, -1e9));
    canvas.addEventListener("dblclick", (event) => this.zoom(2, event.offsetX, event.offsetY));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 20 : 400)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event, onStep));
  }

  key(event, onStep) {
    const shift = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (shift && event.shiftKey) { this.x += shift[0]; this.y += shift[1]; this.moved(); }
    else if (shift) onStep(event.key === "ArrowLeft" || event.key === "ArrowUp" ? -1 : 1);
    else if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key === "o") this.toggle();
    else return;
    event.preventDefault();
  }
}

async function decoded(source) {
  const image = new Image();
  image.src = source;
  try {
    await image.decode();
    return image;
  } catch {
    await get(source.slice(url("").length)).catch((problem) => { throw problem; }); // the server says why
    throw new Error("The picture cannot be shown.");
  }
}

/** A path in pixel corners, and its box. */
function outline(object) {
  const path = new Path2D();
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  object.points.forEach(([x, y], index) => {
    const [px, py] = [x + HALF, y + HALF];
    if (index) path.lineTo(px, py); else path.moveTo(px, py);
    box[0] = Math.min(box[0], px); box[1] = Math.min(box[1], py);
    box[2] = Math.max(box[2], px); box[3] = Math.max(box[3], py);
  });
  path.closePath();
  return { label: object.label, score: object.score, path, box };
}
