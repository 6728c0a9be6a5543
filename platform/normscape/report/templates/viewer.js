"use strict";
// Viewers of volumes. Every element .viewer becomes one; what it shows stands in its JSON (see normscape/report/viewer.py).
//
//   const viewer = await normscapeViewer.open(element);  // null where the browser cannot show it
//   await viewer.show({name, title, place_mm, layers: [{role, label, low, high, opacity, visible, sliding, data | url}]});
//   await viewer.go([x, y, z]);                           // millimetres; the name of a scene as second argument changes to it
//   viewer.layer("anomaly");                              // {visible, opacity, low} as the reader has set them
//
// Settings of a layer outlive a change of the scene. A row <tr data-viewer="id" data-mm="x,y,z" data-scene="name"> moves the crosshair.
// element.dataset.state: waiting, loading, ready, missing (no WebGL 2) or failed; element.dataset.place: the crosshair, "x,y,z".
window.normscapeViewer = (() => {
  const COLOURS = {
    scan: { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] },
    reconstruction: { R: [0, 0, 255], G: [0, 0, 255], B: [0, 0, 255], A: [0, 255, 255], I: [0, 1, 255] },
    anomaly: { R: [255, 255, 255], G: [0, 0, 255], B: [0, 0, 0], A: [0, 255, 255], I: [0, 1, 255] },
    lesion: { R: [90, 90, 90], G: [200, 200, 200], B: [250, 250, 250], A: [0, 255, 255], I: [0, 1, 255] },
  };
  const opened = new WeakMap();
  const sign = (value, digits) => {
    const text = value.toFixed(digits);
    return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "\u2212");
  };
  const make = (tag, fields = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...children);
    return element;
  };
  const canDraw = () => {
    const gl = window.niivue && document.createElement("canvas").getContext("webgl2");
    gl?.getExtension("WEBGL_lose_context")?.loseContext();  // browsers keep few contexts
    return Boolean(gl);
  };

  class Viewer {
    constructor(element) {
      this.element = element;
      this.canvas = element.querySelector("canvas");
      this.place = element.querySelector(".viewer-place");
      this.controls = element.querySelector(".viewer-layers");
      this.scenes = JSON.parse(element.querySelector(".viewer-scenes").textContent).scenes;
      this.settings = new Map();  // role -> {visible, opacity, low}
      this.layers = [];
      this.asked = 0;
      this.said = null;
    }

    async start() {
      this.nv = new window.niivue.Niivue({
        logLevel: "error", loadingText: "", backColor: [0, 0, 0, 1], crosshairColor: [0.35, 0.78, 0.98, 0.9], crosshairWidth: 0.4, crosshairWidthUnit: "mm", crosshairGap: 4,
        isRadiologicalConvention: true, isNearestInterpolation: true, dragAndDropEnabled: false, scrollRequiresFocus: true,
        multiplanarShowRender: 0, isColorbar: false, show3Dcrosshair: false,
      });
      for (const [role, map] of Object.entries(COLOURS)) this.nv.addColormap(`normscape-${role}`, map);
      this.nv.onLocationChange = (location) => this.tell(location);
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      this.element.querySelector(".viewer-body").hidden = false;
      this.element.querySelector(".viewer-otherwise").hidden = true;
      await this.nv.attachToCanvas(this.canvas, false);
      this.nv.setSliceType(this.nv.sliceTypeMultiplanar);
      this.choice();
      if (this.scenes.length) await this.show(this.scenes[0]);
    }

    choice() {
      const box = this.element.querySelector(".viewer-choice");
      const select = box.querySelector("select");
      select.replaceChildren(...this.scenes.map((scene) => make("option", { value: scene.name, textContent: scene.title })));
      select.addEventListener("change", () => this.show(this.scenes.find((scene) => scene.name === select.value)));
      box.hidden = this.scenes.length < 2;
    }

    async show(scene) {
      const mine = ++this.asked;
      this.element.dataset.state = "loading";
      this.canvas.setAttribute("aria-busy", "true");
      let images;
      try {
        images = await Promise.all(scene.layers.map((layer) => this.image(layer)));
      } catch (error) {
        if (mine !== this.asked) return;
        this.element.dataset.state = "failed";
        this.canvas.removeAttribute("aria-busy");
        this.place.textContent = `The volumes cannot be shown: ${error.message}`;
        return;
      }
      if (mine !== this.asked) return;  // another scene was asked for meanwhile
      while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
      this.layers = scene.layers;
      this.scene = scene;
      for (const image of images) this.nv.addVolume(image);
      this.build();
      this.apply();
      const select = this.element.querySelector(".viewer-choice select");
      if ([...select.options].some((option) => option.value === scene.name)) select.value = scene.name;
      this.element.dataset.scene = scene.name ?? "";
      this.element.dataset.state = "ready";
      this.canvas.removeAttribute("aria-busy");
      if (scene.place_mm) this.move(scene.place_mm, "");
      else this.nv.createOnLocationChange();
    }

    async image(layer) {
      const fields = { name: `${layer.role}.nii.gz`, colormap: `normscape-${layer.role}`, cal_min: layer.low, cal_max: layer.high };
      const { NVImage } = window.niivue;
      return layer.url ? NVImage.loadFromUrl({ ...fields, url: layer.url }) : NVImage.loadFromBase64({ ...fields, base64: layer.data });
    }

    layer(role) {
      const found = this.layers.find((layer) => layer.role === role);
      if (found && !this.settings.has(role)) {
        this.settings.set(role, { visible: found.visible ?? true, opacity: found.opacity ?? 1, low: found.low });
      }
      return this.settings.get(role);
    }

    apply() {
      this.layers.forEach((layer, i) => {
        const set = this.layer(layer.role);
        const volume = this.nv.volumes[i];
        volume.cal_min = layer.sliding ? Math.min(set.low, layer.high - 1e-3) : layer.low;
        volume.cal_max = layer.high;
        volume.opacity = set.visible ? set.opacity : 0;
      });
      this.nv.updateGLVolume();
    }

    build() {
      const signature = this.layers.map((layer) => `${layer.role} ${layer.label} ${layer.sliding} ${layer.high}`).join();
      if (signature === this.signature) return;  // the reader may be holding one of the sliders
      this.signature = signature;
      this.controls.replaceChildren(...this.layers.map((layer) => {
        const set = this.layer(layer.role);
        const id = `${this.element.id}-${layer.role}`;
        const shown = make("input", { type: "checkbox", id: `${id}-shown`, checked: set.visible });
        shown.addEventListener("change", () => { set.visible = shown.checked; this.apply(); });
        const box = make("fieldset", {}, make("legend", { textContent: layer.label }));
        box.append(make("label", { htmlFor: shown.id, className: "shown" }, shown, "Show"));
        box.append(this.slider(`${id}-opacity`, "Opacity", 0, 1, 0.05, set.opacity, (value) => { set.opacity = value; }));
        if (layer.sliding) {
          box.append(this.slider(`${id}-threshold`, "Threshold", 0, layer.high, layer.high / 100, set.low, (value) => { set.low = value; }));
        }
        return box;
      }));
    }

    slider(id, text, min, max, step, value, set) {
      const input = make("input", { type: "range", id, min, max, step });
      input.value = value;
      const said = make("b", { textContent: sign(value, 2) });
      input.addEventListener("input", () => {
        said.textContent = sign(Number(input.value), 2);
        set(Number(input.value));
        this.apply();
      });
      return make("label", { htmlFor: id }, text, input, said);
    }

    async go(mm, name, about = "") {
      const scene = name && this.scenes.find((one) => one.name === name);
      if (scene && scene !== this.scene) await this.show(scene);
      if (this.nv.volumes.length) this.move(mm, about);
    }

    move(mm, about) {
      this.said = about;
      this.nv.scene.crosshairPos = this.nv.mm2frac(mm, 0, true);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    key(event) {
      const steps = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
      const step = steps[event.key];
      if (!step || event.ctrlKey || event.altKey || event.metaKey || !this.nv.volumes.length) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      this.nv.moveCrosshairInVox(...step);
    }

    tell(location) {
      const mm = [...location.mm].slice(0, 3);
      const parts = [`x ${sign(mm[0], 0)}, y ${sign(mm[1], 0)}, z ${sign(mm[2], 0)} mm`];
      this.layers.forEach((layer, i) => {
        const value = location.values[i]?.value;
        if (layer.role === "anomaly" && value !== undefined) parts.push(`${layer.label.toLowerCase()} ${sign(Math.max(0, value), 2)}`);
        if (layer.role === "lesion" && value > 0.5) parts.push(`in: ${layer.label.toLowerCase()}`);
      });
      this.element.dataset.place = mm.map((value) => value.toFixed(1)).join();
      this.place.textContent = [this.said, parts.join(" \u00b7 ")].filter(Boolean).join(": ");
      this.said = null;
    }
  }

  const open = (element) => {
    if (!opened.has(element)) {
      opened.set(element, (async () => {
        if (!canDraw()) {
          element.dataset.state = "missing";
          return null;
        }
        element.dataset.state = "loading";
        const viewer = new Viewer(element);
        try {
          await viewer.start();
        } catch (error) {
          element.dataset.state = "missing";
          element.querySelector(".viewer-body").hidden = true;
          element.querySelector(".viewer-otherwise").hidden = false;
          return null;
        }
        if (element.dataset.state === "loading") element.dataset.state = "ready";
        return viewer;
      })());
    }
    return opened.get(element);
  };

  // A row becomes a button only where there is something to move.
  const link = (row) => {
    const element = document.getElementById(row.dataset.viewer);
    const first = row.cells[0];
    const name = first.textContent.trim();
    const button = make("button", { type: "button", className: "viewer-go", title: "Move the crosshair there" });
    button.append(...first.childNodes);
    button.setAttribute("aria-label", `${name}: move the crosshair to ${row.dataset.mm.split(",").map((mm) => sign(Number(mm), 0)).join(", ")} mm`);
    first.replaceChildren(button);
    row.classList.add("viewer-row");
    row.addEventListener("click", async () => {
      const viewer = await open(element);
      if (!viewer) return;
      await viewer.go(row.dataset.mm.split(",").map(Number), row.dataset.scene, row.dataset.about ?? "");
      element.scrollIntoView({ block: "nearest" });
    });
  };

  const start = () => {
    const draws = canDraw();
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        open(entry.target);
      }
    }, { rootMargin: "300px" });
    for (const element of document.querySelectorAll(".viewer")) {
      if (!draws) { element.dataset.state = "missing"; continue; }
      watcher.observe(element);  // volumes are unpacked when the reader comes near them
    }
    if (draws) document.querySelectorAll("tr[data-viewer][data-mm]").forEach(link);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
  return { open, start };
})();
