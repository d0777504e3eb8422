"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = figures.map((figure, i) => ({ figure, div: document.getElementById(`p${i}`) }));
  const hidden = new Set();
  let chosen = null;

  function axis(own, colours) {
    return { automargin: true, gridcolor: colours.grid, zerolinecolor: colours.line, linecolor: colours.line,
      title: { standoff: 8 }, ...own };
  }

  function layout(figure, narrow) {
    const colours = dark.matches
      ? { text: "#e4e8ee", grid: "#2b333e", line: "#55606e", card: "#1d232c", ground: "#14181f" }
      : { text: "#1c2430", grid: "#e6e9ee", line: "#b8c0cb", card: "#ffffff", ground: "#ffffff" };
    const own = structuredClone(figure.layout);
    for (const key of Object.keys(own).filter((k) => /^[xy]axis\d*$/.test(k))) own[key] = axis(own[key], colours);
    for (const key of ["xaxis", "yaxis"]) own[key] ??= axis({}, colours);
    if (narrow) {
      for (const note of own.annotations ?? []) note.font = { size: 9 };
    }
    for (const note of own.annotations ?? []) note.bgcolor = colours.ground;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 400,
      margin: narrow ? { l: 8, r: 12, t: 24, b: 8 } : { l: 12, r: 24, t: 24, b: 12 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.line, activecolor: colours.text },
      hoverlabel: { bgcolor: colours.card, font: { color: colours.text }, align: "left" },
      dragmode: narrow ? false : "zoom",
      ...own,
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: colours.text },
    };
  }

  function traces(figure) {
    return figure.data.map((trace) => {
      const meta = trace.meta;
      if (trace.type === "heatmap") return { ...trace, textfont: { color: dark.matches ? "#e4e8ee" : "#1c2430" } };
      if (!meta) return trace;
      const styled = { ...trace, visible: !hidden.has(meta.state) };
      if (chosen !== null) {
        const is = String(meta.trial) === chosen;
        styled.opacity = is ? 1 : 0.15;
        if (is && trace.line) styled.line = { ...trace.line, width: 4 };
        if (is && trace.marker) styled.marker = { ...trace.marker, size: (trace.marker.size || 6) + 4 };
      }
      return styled;
    });
  }

  function draw(only) {
    const narrow = window.innerWidth < 560;
    const config = { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    for (const { figure, div } of plots) {
      if (!only || figure.data.some((trace) => trace.meta)) {
        Plotly.react(div, traces(figure), layout(figure, narrow), config);
      }
    }
  }

  const picked = document.querySelector(".picked");
  const rows = [...document.querySelectorAll("tr[data-trial]")];
  function choose(trial) {
    chosen = chosen === trial ? null : trial;
    for (const row of rows) row.classList.toggle("chosen", row.dataset.trial === chosen);
    const row = rows.find((r) => r.dataset.trial === chosen);
    picked.hidden = !row;
    if (row) {
      picked.querySelector("p").textContent = `Trial ${chosen} is picked out (again to let go). To train it alone:`;
      picked.querySelector("pre").textContent = row.dataset.command;
    }
    draw(true);
  }
  for (const row of rows) {
    row.addEventListener("click", () => choose(row.dataset.trial));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(row.dataset.trial); });
  }
  for (const box of document.querySelectorAll(".filters input")) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.dataset.state); else hidden.add(box.dataset.state);
      for (const row of rows) row.hidden = hidden.has(row.dataset.state);
      draw(true);
    });
  }
  if (plots.length) {
    draw(false);
    for (const { figure, div } of plots) {
      if (figure.data.some((trace) => trace.meta)) {
        div.on("plotly_click", (event) => {
          const meta = event.points[0].data.meta;
          if (meta) choose(String(meta.trial));
        });
      }
    }
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth !== width) {
        width = window.innerWidth;
        draw(false);
      }
    });
    dark.addEventListener("change", () => draw(false));
  }
})();
