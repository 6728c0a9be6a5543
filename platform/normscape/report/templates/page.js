"use strict";
// The slider shows one column of each strip of images; without this script the first choice stays visible.
(() => {
  const figure = document.getElementById("slider");
  if (!figure) return;
  const input = figure.querySelector("input");
  const output = figure.querySelector("output");
  const play = figure.querySelector("#play");
  const images = [...figure.querySelectorAll("img")];
  const names = images.map((image) => image.alt.slice(0, -output.textContent.length));
  const values = JSON.parse(figure.dataset.values);
  let timer = 0;

  const show = () => {
    const text = values[input.value];
    figure.style.setProperty("--i", input.value);
    input.setAttribute("aria-valuetext", text);
    output.textContent = text;
    images.forEach((image, i) => { image.alt = names[i] + text; });
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  let direction = 1;
  const step = () => {
    if (Number(input.value) + direction < 0 || Number(input.value) + direction > Number(input.max)) direction = -direction;
    input.value = String(Number(input.value) + direction);
    show();
  };

  input.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    timer = setInterval(step, Math.max(60, 2400 / values.length));
    play.textContent = "Stop";
    play.setAttribute("aria-pressed", "true");
  });
  show();
})();
