// Looking through a scan with NiiVue. The page is complete without it.
(() => {
  const byId = (id) => document.getElementById(id);
  const [note, open, choice, stage, canvas, fade] = ["note", "open", "scan", "stage", "canvas", "fade"]
    .map((name) => byId("viewer-" + name));
  if (!open) return;
  const say = (text) => { note.textContent = text; };
  const buttons = [...stage.querySelectorAll("[data-show]")];
  let viewer = null, shown = "before", volumes = {}, latest = 0;

  const unpacked = async (id) => {
    const packed = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };

  const start = async () => {
    const script = document.createElement("script");  // its hash is in the page's policy
    script.textContent = new TextDecoder().decode(await unpacked("viewer-niivue"));
    document.head.append(script);
    stage.hidden = false;
    const made = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.2, 0.75, 1, 0.8], crosshairWidth: 0.35, fontMinPx: 15,
      fontColor: [1, 1, 1, 1], showAllOrientationMarkers: true, sagittalNoseLeft: true, multiplanarLayout: 3,
      multiplanarShowRender: 0, multiplanarPadPixels: 24, dragAndDropEnabled: false, loadingText: "",
      logLevel: "error",
    });
    await made.attachToCanvas(canvas, false);
    made.setSliceType(niivue.SLICE_TYPE.MULTIPLANAR);
    const colours = JSON.parse(byId("viewer-colours").textContent);
    made.addColormap("difference", {
      R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
      A: colours.map(() => 255), I: colours.map((_, i) => i),
    });
    made.onLocationChange = (place) => {
      const mm = [...place.mm].slice(0, 3).map((x) => Math.round(x)).join(", ");
      const at = place.vox, size = volumes.before?.dims;
      if (!size) return;
      const index = at[0] + size[1] * (at[1] + size[2] * at[2]);
      const [before, after] = ["before", "after"].map((side) => volumes[side].img[index] * volumes[side].hdr.scl_slope);
      if (Number.isNaN(before + after)) return;
      const change = after - before;
      say(`${mm} mm (x right, y front, z up): before ${before.toFixed(2)}, after ${after.toFixed(2)}, ` +
        `difference ${change < 0 ? "\u2212" : "+"}${Math.abs(change).toFixed(2)}`);
    };
    return made;
  };

  // A volume of indices into the colours of the difference pictures: 0 outside the brain, 127 for no change.
  const difference = async (number, before, after) => {
    const limit = Number(byId("viewer-colours").dataset.limit);
    const file = new Uint8Array(await unpacked(`volume-${number}-after`));
    const header = new DataView(file.buffer);
    const [slope, most, least] = [112, 124, 128];  // NIfTI-1: scl_slope, cal_max, cal_min
    header.setFloat32(slope, 1, true);
    header.setFloat32(most, 255, true);
    header.setFloat32(least, 0, true);
    file.subarray(352).forEach((value, i, voxels) => {
      const change = value * after.hdr.scl_slope - before.img[i] * before.hdr.scl_slope;
      voxels[i] = value && Math.round(127 + 126 * Math.max(-1, Math.min(1, change / limit)));
    });
    let text = "";
    file.forEach((byte) => { text += String.fromCharCode(byte); });
    return niivue.NVImage.loadFromBase64(
      { base64: btoa(text), name: "difference.nii", colormap: "difference", cal_min: 0, cal_max: 255 });
  };

  const show = (what) => {
    shown = what;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.show === what)));
    const share = what === "after" ? 1 : what === "before" ? 0 : Number(fade.value) / 100;
    if (what === "after" || what === "before") fade.value = String(100 * share);
    viewer.setInterpolation(what === "difference");  // indices must not be mixed
    viewer.setOpacity(1, what === "difference" ? 0 : share);
    viewer.setOpacity(2, what === "difference" ? 1 : 0);
  };

  const load = async () => {
    const wanted = ++latest, number = choice.value;
    const images = await Promise.all(["before", "after"].map((side) => niivue.NVImage.loadFromBase64(
      { base64: byId(`volume-${number}-${side}`).textContent, name: `${side}.nii.gz` })));
    const change = await difference(number, ...images);
    if (wanted !== latest) return;  // another scan was chosen meanwhile
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    volumes = { before: images[0], after: images[1] };
    for (const image of [...images, change]) viewer.addVolume(image);
    show(shown);
    canvas.dataset.shown = number;
    canvas.setAttribute("aria-label",
      `Axial, coronal and sagittal slice of ${choice.selectedOptions[0].textContent}; arrow keys move them`);
  };

  const begin = async () => {
    if (!document.createElement("canvas").getContext("webgl2")) {
      open.hidden = true;
      say("The viewer needs WebGL 2, which this browser does not offer here. The pictures below need nothing.");
      return;
    }
    open.disabled = true;
    say("Opening\u2026");
    try {
      viewer ??= await start();
      await load();
      open.hidden = true;
    } catch (error) {
      say(`The viewer could not be opened (${error.message}). The pictures below need nothing.`);
    }
  };

  const keys = {
    ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1],
    PageUp: [0, 1, 0], PageDown: [0, -1, 0],
  };
  canvas.addEventListener("keydown", (event) => {
    if (!viewer || !keys[event.key]) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    viewer.moveCrosshairInVox(...keys[event.key]);
  }, true);
  open.addEventListener("click", begin);
  choice.addEventListener("change", () => { if (viewer) load(); });
  buttons.forEach((b) => b.addEventListener("click", () => show(b.dataset.show)));
  fade.addEventListener("input", () => show("fade"));
  document.querySelectorAll("[data-view]").forEach((link) => link.addEventListener("click", () => {
    choice.value = link.dataset.view;
    if (viewer) load(); else begin();
  }));
  open.hidden = false;
  say("");
})();
