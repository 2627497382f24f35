// The cards of outputs: the facts in a file's first bytes, pictures, and 3D models that turn.
// flows.js announces a new page with `flows:prepare`, and one that replaces it with `flows:replace`.
"use strict";

(() => {
  const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");
  const GLB = "model/gltf-binary";
  const NO_VIEWER = "This installation has no viewer for 3D models. Download the model instead.";
  const NO_WEBGL = "This browser shows no 3D, because WebGL is not available. Download the model instead.";
  const NO_MODEL = "This file is not a GLB 3D model, or its header is damaged. Download it to inspect it.";
  const OTHER_FILES = "This model refers to other files, which are not loaded here. Download it instead.";
  const NOT_LOADED = "The model could not be displayed.";
  const infos = new WeakMap(); // by card
  let loading = null;

  const formatNumber = (number) => number.toLocaleString("en");
  const count = (number, noun) => `${formatNumber(number)} ${noun}${number === 1 ? "" : "s"}`;

  const formatSize = (bytes) => {
    if (bytes < 1000) return `${bytes} bytes`;
    const power = Math.min(Math.floor(Math.log10(bytes) / 3), 4);
    const value = bytes / 1000 ** power;
    return `${value.toFixed(value < 100 ? 1 : 0)} ${["", "kB", "MB", "GB", "TB"][power]}`;
  };

  const create = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  const hasWebgl = () => {
    try {
      const context = document.createElement("canvas").getContext("webgl2");
      context?.getExtension("WEBGL_lose_context")?.loseContext(); // a browser has a few of them only
      return Boolean(context);
    } catch {
      return false;
    }
  };

  const loadViewer = () => {
    loading ??= new Promise((resolve, reject) => {
      // no decoder from another host: a model that needs one is not displayed
      self.ModelViewerElement = {
        dracoDecoderLocation: "none/",
        ktx2TranscoderLocation: "none/",
        meshoptDecoderLocation: "none/",
        lottieLoaderLocation: "none/",
      };
      const script = create("script", { src: document.body.dataset.viewer });
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => {
        loading = null;
        script.remove();
        reject(new Error("the viewer could not be loaded"));
      });
      document.head.append(script);
    });
    return loading;
  };

  const explain = (view, text, label = "", action = null) => {
    const note = create("p", { textContent: text });
    view.replaceChildren(create("div", { className: "stage" }, note));
    if (action) {
      const button = create("button", { type: "button", className: "button", textContent: label });
      button.addEventListener("click", action);
      note.after(button);
    }
    view.hidden = false;
  };

  // At most one model of a page turns by itself; the others turn while the pointer or the focus is on them.
  const turn = (viewer, view) => {
    if (reducedMotion.matches) return;
    const main = document.getElementById("main");
    const isMain = view.closest("[data-before]") !== null || main.querySelector("[data-before]") === null;
    if (isMain && main.querySelector("model-viewer[auto-rotate]") === null) {
      viewer.setAttribute("auto-rotate", "");
      return;
    }
    for (const name of ["pointerenter", "focus"]) viewer.addEventListener(name, () => viewer.setAttribute("auto-rotate", ""));
    for (const name of ["pointerleave", "blur"]) viewer.addEventListener(name, () => viewer.removeAttribute("auto-rotate"));
  };

  const displayModel = async (view) => {
    const retry = () => displayModel(view);
    const status = create("p", { slot: "progress-bar", className: "loading", textContent: "Loading the model…" });
    const stage = create("div", { className: "stage" }, create("p", { textContent: status.textContent }));
    view.replaceChildren(stage);
    view.hidden = false;
    try {
      await loadViewer();
    } catch {
      explain(view, NOT_LOADED, "Try again", retry);
      return;
    }
    const viewer = document.createElement("model-viewer");
    const attributes = {
      alt: `3D model: ${view.dataset.title}`,
      "camera-controls": "",
      "camera-orbit": "30deg 72deg auto",
      "interaction-prompt": "none",
      loading: "lazy",
      "rotation-per-second": "24deg",
      "auto-rotate-delay": "800",
      "shadow-intensity": "0.9",
      "shadow-softness": "1",
      "tone-mapping": "neutral",
      "touch-action": "pan-y",
      src: view.dataset.model,
    };
    for (const [name, value] of Object.entries(attributes)) viewer.setAttribute(name, value);
    viewer.addEventListener("load", () => status.replaceChildren());
    viewer.addEventListener("error", () => explain(view, NOT_LOADED, "Try again", retry));
    viewer.append(status);
    stage.replaceChildren(viewer);
    turn(viewer, view);
  };

  const showModel = (view, info) => {
    const maxBytes = Number(document.body.dataset.maxUnaskedBytes);
    if (info.model.compression) {
      explain(view, `This model is compressed with ${info.model.compression}, which cannot be displayed here. Download it instead.`);
    } else if (info.model.has_other_files) {
      explain(view, OTHER_FILES);
    } else if (!document.body.dataset.viewer) {
      explain(view, NO_VIEWER);
    } else if (!hasWebgl()) {
      explain(view, NO_WEBGL);
    } else if (info.size !== null && info.size > maxBytes) {
      explain(view, "This model is large.", `Display it (${formatSize(info.size)})`, () => displayModel(view));
    } else {
      displayModel(view);
    }
  };

  const showImage = (view) => {
    view.replaceChildren(create("img", { src: view.dataset.image, alt: view.dataset.title }));
    view.hidden = false;
  };

  const setText = (card, name, text) => {
    const element = card.querySelector(`[data-is="${name}"]`);
    if (element && text) element.textContent = text;
  };

  const listFacts = (model) => {
    const facts = [count(model.triangles, "triangle")];
    for (const [name, noun] of [["materials", "material"], ["textures", "texture"], ["animations", "animation"]]) {
      if (model[name]) facts.push(count(model[name], noun));
    }
    return facts.join(" · ");
  };

  // The difference between an input and the output, once the facts of both are known.
  const showChanges = (main) => {
    for (const card of main.querySelectorAll("[data-before]")) {
      const before = infos.get(document.getElementById(card.dataset.before));
      const change = card.querySelector('[data-is="change"]');
      if (!before?.model || !infos.get(card)?.model || change.dataset.complete) continue;
      const triangles = [before, infos.get(card)].map((info) => formatNumber(info.model.triangles)).join(" → ");
      change.textContent = [`${triangles} triangles`, change.textContent].filter(Boolean).join(", ");
      change.dataset.complete = "1";
    }
  };

  const showFile = async (view) => {
    const card = view.closest(".output");
    const response = await fetch(view.dataset.info, { headers: { accept: "application/json" } }).catch(() => null);
    const info = response && response.ok ? await response.json().catch(() => null) : null;
    if (!info) {
      if (view.dataset.declared === GLB) explain(view, "The file cannot be read at present.", "Try again", () => showFile(view));
      return;
    }
    infos.set(card, info);
    const size = card.dataset.size ? Number(card.dataset.size) : info.size;
    setText(card, "file-info", [info.media_type, size === null ? null : formatSize(size)].filter(Boolean).join(" · "));
    if (info.model) {
      setText(card, "facts", listFacts(info.model));
      showModel(view, info);
    } else if (info.is_image) {
      showImage(view);
    } else if (view.dataset.declared === GLB) {
      explain(view, NO_MODEL);
    }
    showChanges(document.getElementById("main"));
  };

  document.addEventListener("flows:prepare", ({ detail: main }) => {
    for (const view of main.querySelectorAll("[data-info]")) {
      if (!infos.has(view.closest(".output"))) showFile(view);
    }
  });

  // A card whose file is the same stays as it is: the camera does not jump back, and nothing is requested again.
  document.addEventListener("flows:replace", ({ detail: { main, fresh } }) => {
    const shown = new Map([...main.querySelectorAll("[data-card]")].filter((card) => infos.has(card)).map((card) => [card.dataset.card, card]));
    for (const card of fresh.querySelectorAll("[data-card]")) {
      if (shown.has(card.dataset.card)) card.replaceWith(shown.get(card.dataset.card));
    }
  });
})();
