"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const main = document.querySelector("main");
  const find = byId("find"), only = byId("only"), found = byId("found");
  document.documentElement.classList.add("js");

  // Every piece of text, where it is, and what goes away with it.
  const pieces = [];
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("svg, .status")) continue;
    const lower = node.data.toLowerCase();
    pieces.push({
      node,
      // In some languages it has another length.
      text: lower.length === node.data.length ? lower : node.data,
      section: parent.closest("section, header"),
      unit: parent.closest("tbody tr, pre > span, dl > div"),
    });
  }
  const units = main.querySelectorAll("tbody tr, pre > span, dl > div");
  const groups = main.querySelectorAll("section, figure, details, .wide");
  const frames = [...main.querySelectorAll(".frame")].map((element) => ({
    element,
    name: element.querySelector("text").textContent.toLowerCase(),
    x: parseFloat(element.getAttribute("x")),
    width: parseFloat(element.getAttribute("width")),
  }));
  const MOST = 20000;
  const highlights = window.CSS && CSS.highlights;
  let hits = [], current = -1;

  const mark = (name, ranges) => {
    if (highlights) highlights.set(name, new Highlight(...ranges));
  };

  const say = () => {
    const wanted = find.value.trim();
    const many = hits.length >= MOST ? `${MOST} or more` : `${hits.length}`;
    found.textContent = !wanted ? "" : !hits.length ? "no hits"
      : current < 0 ? `${many} hits (Enter: next)` : `${current + 1} of ${many} hits`;
  };

  const search = () => {
    const wanted = find.value.trim().toLowerCase();
    const perSection = new Map(), matching = new Set();
    hits = [];
    current = -1;
    for (const piece of wanted ? pieces : []) {
      let at = piece.text.indexOf(wanted);
      while (at >= 0 && hits.length < MOST) {
        const range = new Range();
        range.setStart(piece.node, at);
        range.setEnd(piece.node, at + wanted.length);
        hits.push(range);
        perSection.set(piece.section, (perSection.get(piece.section) || 0) + 1);
        if (piece.unit) matching.add(piece.unit);
        at = piece.text.indexOf(wanted, at + wanted.length);
      }
    }
    mark("found", hits);
    mark("current", []);
    const hide = wanted && only.checked;
    for (const unit of units) unit.hidden = hide && !matching.has(unit);
    const holding = new Set();
    for (const range of hide ? hits : []) {
      let box = range.startContainer.parentElement;
      for (; box && !holding.has(box); box = box.parentElement) holding.add(box);
    }
    for (const group of groups) group.hidden = hide && !holding.has(group);
    for (const link of document.querySelectorAll("nav a")) {
      const section = byId(link.hash.slice(1)).closest("section, header");
      link.querySelector(".hits").textContent = perSection.get(section) || "";
    }
    for (const frame of frames) {
      frame.element.classList.toggle("found", Boolean(wanted) && frame.name.includes(wanted));
    }
    say();
  };

  const go = (step) => {
    if (!hits.length) return;
    current = (current + step + hits.length) % hits.length;
    const element = hits[current].startContainer.parentElement;
    for (let box = element.closest("details"); box; box = box.parentElement.closest("details")) {
      box.open = true;
    }
    mark("current", [hits[current]]);
    element.scrollIntoView({ block: "center" });
    say();
  };

  let waiting = 0;
  find.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  only.addEventListener("change", search);
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      if (current < 0) {
        clearTimeout(waiting);
        search();
      }
      go(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      find.value = "";
      search();
      find.blur();
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      find.focus();
      find.select();
    }
  });

  // Where in the contents one is.
  const links = new Map();
  for (const link of document.querySelectorAll("nav a")) {
    links.set(byId(link.hash.slice(1)).closest("section, header"), link);
  }
  const inView = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) inView.add(entry.target);
      else inView.delete(entry.target);
    }
    let first = true;
    for (const [section, link] of links) {
      link.classList.toggle("here", first && inView.has(section));
      if (inView.has(section)) first = false;
    }
  }, { rootMargin: "-10% 0px -40% 0px" });
  for (const section of links.keys()) observer.observe(section);

  // A frame of a flame graph as wide as the whole, and what is above and below it.
  const zoom = (graph, target) => {
    const slack = 1e-3;
    for (const { element, x, width } of frames) {
      if (element.parentElement !== graph) continue;
      const around = x <= target.x + slack && x + width >= target.x + target.width - slack;
      const inside = x >= target.x - slack && x + width <= target.x + target.width + slack;
      element.toggleAttribute("hidden", !around && !inside);
      element.classList.toggle("up", around && !inside);
      const scale = 100 / target.width;
      element.setAttribute("x", around ? "0%" : `${(x - target.x) * scale}%`);
      element.setAttribute("width", around ? "100%" : `${width * scale}%`);
    }
  };
  for (const graph of main.querySelectorAll("svg.flame")) {
    const reset = document.createElement("button");
    reset.className = "reset";
    reset.textContent = "Show all";
    reset.hidden = true;
    graph.before(reset);
    reset.addEventListener("click", () => {
      zoom(graph, { x: 0, width: 100 });
      reset.hidden = true;
    });
    graph.addEventListener("click", (event) => {
      const element = event.target.closest(".frame");
      const target = frames.find((frame) => frame.element === element);
      if (!target) return;
      zoom(graph, target);
      reset.hidden = target.width > 99.99;
    });
  }

  // Paper cannot be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const box of folded) box.open = true;
  });
  addEventListener("afterprint", () => {
    for (const box of folded) box.open = false;
  });
})();
