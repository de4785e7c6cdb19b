// The report's viewer and its one button. No library but NiiVue, no request: volumes are in the script element 'cases'.
"use strict";

(function () {
  const byId = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(byId(id).textContent);

  // --- evaluation.json as a file

  const save = byId("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(parsed("evaluation"), null, 1) + "\n"]));
    link.download = "evaluation.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // --- printing: what is folded is opened

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  // --- the viewer

  const AXES = { multiplanar: 2, axial: 2, coronal: 1, sagittal: 0 }; // which axis the slice slider leafs along
  const TYPES = { axial: 0, coronal: 1, sagittal: 2, multiplanar: 3 }; // NiiVue's SLICE_TYPE
  const CYAN = { R: [0, 86], G: [0, 200], B: [0, 255], A: [0, 255], I: [0, 255] };
  const SHADES = { A: [0, 255, 255, 255, 255], I: [0, 1, 147, 208, 255] }; // 255 sqrt(k / 3), see enlarged
  const WARM = { R: [168, 168, 232, 255, 255], G: [20, 20, 69, 140, 196], B: [0, 0, 10, 15, 0], ...SHADES };
  const COOL = { R: [42, 42, 74, 106, 154], G: [16, 16, 47, 92, 144], B: [160, 160, 224, 255, 255], ...SHADES };
  const FLOAT32 = 16; // NIfTI's code
  const FULL = Math.sqrt(1 / 1.6); // where a map is as opaque as it gets, see enlarged

  if (!byId("cases")) return;
  start().catch((error) => {
    byId("viewer").hidden = true;
    byId("no-viewer").hidden = false;
    byId("no-viewer").textContent = `The viewer could not start (${error.message || error}). ` +
      "Everything else on this page is complete without it.";
  });

  function hasWebGL2() {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl2"));
    } catch {
      return false;
    }
  }

  async function start() {
    if (!hasWebGL2()) return;
    byId("no-viewer").hidden = true;
    byId("viewer").hidden = false;
    const cases = parsed("cases");
    if (window.innerWidth < 640) byId("planes").value = "axial"; // one plane fills a phone's width
    const nv = new niivue.Niivue({
      logLevel: "error", loadingText: "", dragAndDropEnabled: false, scrollRequiresFocus: true,
      isRadiologicalConvention: true, sagittalNoseLeft: true, showAllOrientationMarkers: true,
      sliceType: TYPES.multiplanar, multiplanarShowRender: 0, multiplanarPadPixels: 6, backColor: [0, 0, 0, 1],
      crosshairColor: [0.62, 0.66, 0.7, 1], crosshairWidth: 0.4, crosshairWidthUnit: "percent", crosshairGap: 8,
      fontColor: [1, 1, 1, 1], fontMinPx: 14, clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
    });
    await nv.attachToCanvas(byId("canvas"), false);
    nv.addColormap("tumour", CYAN);
    nv.addColormap("for", WARM);
    nv.addColormap("against", COOL);
    window.mgkerasViewer = new Viewer(nv, cases);
    window.mgkerasViewer.listen();
  }

  class Viewer {
    constructor(nv, cases) {
      this.nv = nv;
      this.cases = cases;
      this.outcome = parsed("evaluation").outcome;
      this.asked = 0; // counts choices, so that a slow one cannot overwrite a later one
      nv.onLocationChange = () => this.saySlice();
    }

    get case() {
      return this.cases[Number(byId("subject").value)];
    }

    get model() {
      return byId("model").value;
    }

    listen() {
      const on = (id, event, what) => byId(id).addEventListener(event, what);
      on("subject", "change", () => this.show(true));
      on("previous", "click", () => this.step(-1));
      on("next", "click", () => this.step(1));
      on("model", "change", () => this.show(false));
      on("filled", "change", () => this.drawMask());
      on("planes", "change", () => this.setPlanes());
      on("map-opacity", "input", () => this.setOpacities());
      on("mask-opacity", "input", () => this.setOpacities());
      on("slice", "input", () => this.setSlice());
      on("to-tumour", "click", () => this.go(this.case.centre));
      on("to-peak", "click", () => this.go(this.case.looks[this.model].peak));
      this.show(true);
    }

    step(by) {
      const count = this.cases.length;
      byId("subject").value = String((Number(byId("subject").value) + by + count) % count);
      this.show(true);
    }

    async show(move) {
      const asked = ++this.asked;
      const one = this.case;
      const [early, mask, cells] = await Promise.all([
        load(one.early, "early", "gray", 255), load(one.mask, "mask", "tumour", 1),
        load(one.maps[this.model], "map", "for", 127),
      ]);
      if (asked !== this.asked) return;
      const nv = this.nv;
      for (const volume of [...nv.volumes]) nv.removeVolume(volume);
      for (const volume of [early, enlarged(cells, early), mask]) nv.addVolume(volume);
      this.full = mask.img.slice();
      byId("slice").max = String(one.side);
      byId("to-tumour").disabled = !one.tumour;
      this.drawMask();
      this.setOpacities();
      this.setPlanes();
      if (move) this.go(one.tumour ? one.centre : [0.5, 0.5, 0.5]);
      this.sayCase();
      document.documentElement.dataset.shown = `${one.name}/${this.model}`; // for tests: the picture is complete
    }

    drawMask() {
      const mask = this.nv.volumes[2];
      mask.img.set(byId("filled").checked ? this.full : outline(this.full, this.case.side));
      this.nv.updateGLVolume();
    }

    setOpacities() {
      for (const [place, id] of [[1, "map-opacity"], [2, "mask-opacity"]]) {
        byId(`${id}-said`).textContent = `${byId(id).value} %`;
        this.nv.setOpacity(place, Number(byId(id).value) / 100);
      }
    }

    setPlanes() {
      const planes = byId("planes").value;
      this.nv.setSliceType(TYPES[planes]);
      byId("slice-of").textContent = { 0: "Sagittal slice", 1: "Coronal slice", 2: "Axial slice" }[AXES[planes]];
      this.saySlice();
    }

    go(place) {
      this.nv.scene.crosshairPos = [...place];
      this.nv.drawScene();
      this.saySlice();
    }

    setSlice() {
      const place = [...this.nv.scene.crosshairPos];
      place[AXES[byId("planes").value]] = (Number(byId("slice").value) - 0.5) / this.case.side;
      this.go(place);
    }

    saySlice() {
      const side = this.case.side;
      const slice = Math.ceil(this.nv.scene.crosshairPos[AXES[byId("planes").value]] * side - 1e-6);
      byId("slice").value = String(Math.min(Math.max(slice, 1), side));
      byId("slice-said").textContent = `${byId("slice").value} of ${side}`;
    }

    sayCase() {
      const one = this.case, look = one.looks[this.model];
      const said = [`${one.name}: ${this.outcome} = ${one.label}; ${this.model} says P = ${look.p.toFixed(2)}`];
      if (look.mass !== null) {
        said.push(`${Math.round(100 * look.mass)}\u00a0% of its map's mass in the tumour` +
          (look.chance === null ? "" : ` (chance ${Math.round(100 * look.chance)}\u00a0%)`));
      }
      if (look.peak_mm !== null) {
        said.push(look.peak_mm === 0 ? "peak in the tumour" : `peak ${look.peak_mm.toFixed(0)} mm from the tumour`);
      }
      if (!one.tumour) said.push("the mask is empty");
      byId("said").textContent = said.join("; ") + `. Voxel ${one.voxel_mm.toFixed(1)} mm.`;
    }
  }

  // --- volumes

  function load(base64, name, colormap, top) {
    return niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, colormap, cal_min: 0, cal_max: top });
  }

  // The map on the early phase's grid, its largest absolute value 1: linear between its cells' centres, edges clamped, as
  // evaluation.attention.enlarge has it. NiiVue itself would take the nearest cell. It makes a voxel of colormapType 1
  // as opaque as the square of its value, up to cal_min, so the root is stored, with the sign: opacity then grows with
  // the map itself, up to 1 / 1.6 of its largest value as in Figure 3.
  function enlarged(cells, early) {
    const grid = cells.hdr.dims[1], side = early.hdr.dims[1], lines = weights(grid, side);
    const across = new Float32Array(side * grid * grid), upward = new Float32Array(side * side * grid);
    spread(cells.img, across, lines, grid * grid, 1, grid, 1, side);
    for (let z = 0; z < grid; z++) {
      spread(across.subarray(z * grid * side), upward.subarray(z * side * side), lines, side, side, 1, side, 1);
    }
    const found = early.clone(), all = new Float32Array(side ** 3);
    spread(upward, all, lines, side * side, side * side, 1, side * side, 1);
    const top = cells.img.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    found.img = all.map((value) => Math.sign(value) * Math.sqrt(Math.abs(value) / top));
    found.hdr = { ...early.hdr, datatypeCode: FLOAT32, numBitsPerVoxel: 32, scl_slope: 1, scl_inter: 0 };
    Object.assign(found, {
      name: "map", colormap: "for", colormapNegative: "against", colormapType: 1, cal_min: FULL, cal_max: 1,
      cal_minNeg: -1, cal_maxNeg: -FULL,
    });
    return found;
  }

  // Along one axis: each of `count` lines of cells becomes a line of voxels; step: from cell to cell, next: from line to
  // line.
  function spread(from, to, lines, count, step, next, stepTo, nextTo) {
    for (let line = 0; line < count; line++) {
      for (let i = 0; i < lines.length; i++) {
        const [low, high, share] = lines[i];
        to[line * nextTo + i * stepTo] =
          (1 - share) * from[line * next + low * step] + share * from[line * next + high * step];
      }
    }
  }

  function weights(grid, side) {
    return Array.from({ length: side }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * grid) / side - 0.5, 0), grid - 1), low = Math.floor(at);
      return [low, Math.min(low + 1, grid - 1), at - low];
    });
  }

  // The mask's voxels that touch a voxel outside it by a face.
  function outline(mask, side) {
    const steps = [1, side, side * side];
    return mask.map((value, i) => {
      if (!value) return 0;
      const inside = steps.every((step) => {
        const place = Math.floor(i / step) % side;
        return place > 0 && place < side - 1 && mask[i - step] && mask[i + step];
      });
      return inside ? 0 : 1;
    });
  }
})();
