// Points of projected images: a point that is pointed at, or has the focus, shows its image and its reconstruction.
(() => {
  const figure = document.getElementById("scatter");
  if (!figure) return;
  const { planes, points } = JSON.parse(figure.querySelector("script").textContent);
  const select = figure.querySelector("select");
  const marks = [...figure.querySelectorAll("[role=option]")];
  const [image, rebuilt] = ["scatter-image", "scatter-rebuilt"].map((id) => document.getElementById(id));
  const said = document.getElementById("scatter-said");
  const columns = Number(figure.style.getPropertyValue("--columns"));
  const lines = Number(figure.style.getPropertyValue("--lines"));
  let chosen = -1;

  const cut = (cell, column, line) => {
    const share = (at, all) => (all > 1 ? 100 * at / (all - 1) : 0);
    cell.style.backgroundPosition = `${share(column, columns)}% ${share(line, lines)}%`;
    cell.classList.add("filled");
  };
  const choose = (i) => {
    if (i === chosen) return;
    if (chosen >= 0) {
      marks[chosen].setAttribute("aria-selected", "false");
      marks[chosen].tabIndex = -1;
    } else marks.forEach((mark) => { mark.tabIndex = -1; });
    chosen = i;
    const { kind, score, facts } = points[i];
    marks[i].setAttribute("aria-selected", "true");
    marks[i].tabIndex = 0;
    cut(image, i % columns, Math.floor(i / columns));
    cut(rebuilt, i % columns, lines / 2 + Math.floor(i / columns));
    image.setAttribute("aria-label", `${kind} test image${facts ? `, ${facts}` : ""}`);
    rebuilt.setAttribute("aria-label", "its reconstruction");
    said.textContent = [kind, score && `score ${score}`, facts].filter(Boolean).join(", ");
  };
  const place = (i) => planes[select.value].places[i];
  const draw = () => {
    const plane = planes[select.value];
    marks.forEach((mark, i) => {
      const [x, y] = place(i);
      mark.setAttribute("transform", `translate(${(400 * x).toFixed(1)} ${(400 - 400 * y).toFixed(1)})`);
    });
    document.getElementById("scatter-across").textContent = plane.across;
    document.getElementById("scatter-up").textContent = plane.up;
  };
  // The nearest point that lies rather in the direction of the arrow than beside it.
  const next = (i, [dx, dy]) => {
    const [x, y] = place(i);
    let best = i;
    let least = Infinity;
    marks.forEach((_, j) => {
      const [u, v] = place(j);
      const along = (u - x) * dx + (v - y) * dy;
      const beside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
      const far = along + 2 * beside;
      if (j !== i && along > 0 && beside <= 2 * along && far < least) [best, least] = [j, far];
    });
    return best;
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  marks.forEach((mark, i) => {
    mark.addEventListener("pointerenter", () => choose(i));
    mark.addEventListener("focus", () => choose(i));
    mark.addEventListener("click", () => mark.focus());
    mark.addEventListener("keydown", (event) => {
      const to = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : arrows[event.key] ? next(i, arrows[event.key]) : -1;
      if (to < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      marks[to].focus();
    });
  });
  select.addEventListener("change", draw);
  draw();
})();
