"use strict";
// Everything that is shown comes from the data in this page, and is put into it as text, never as HTML.
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const runs = report.runs;
  const state = { axis: "step", smoothing: 0, range: null, hidden: new Set(), log: new Set(), drag: null };
  const byId = (id) => document.getElementById(id);
  const color = (index) => `var(--c${index % 8})`;
  const SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "style") node.style.cssText = value;
      else if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== undefined && value !== null) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  function draw(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value;
      else node.setAttribute(key, value);
    }
    return node;
  }
  const dot = (index) => make("span", { class: "dot", style: `background:${color(index)}` });

  // Numbers as people read them.
  function number(value, digits = 4) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e12) return value.toExponential(2);
    if (size >= 1e9) return `${(value / 1e9).toPrecision(3)}G`;
    if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
    if (size < 1e-3) return Number(value.toPrecision(3)).toExponential();
    return String(Number(value.toPrecision(digits)));
  }
  function duration(seconds) {
    if (!Number.isFinite(seconds)) return "–";
    if (seconds === 0) return "0 s";
    if (seconds < 1) return `${(seconds * 1e3).toPrecision(3)} ms`;
    if (seconds < 120) return `${Number(seconds.toPrecision(3))} s`;
    const whole = Math.round(seconds);
    const parts = whole < 7200 ? [Math.floor(whole / 60), "min", whole % 60, "s"] : [Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min"];
    return parts.slice(0, parts[2] ? 4 : 2).join(" ");
  }
  const clock = (seconds) => new Date(seconds * 1e3).toLocaleString();
  const finite = (values) => (values || []).filter((value) => Number.isFinite(value));
  function median(values) {
    const sorted = finite(values).sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : NaN;
  }
  function last(values) {
    const known = finite(values);
    return known.length ? known[known.length - 1] : NaN;
  }
  const least = (values) => finite(values).reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => finite(values).reduce((a, b) => Math.max(a, b), -Infinity);

  // What there is to see: each curve has its places on the axis and its values.
  const CHARTS = [
    { id: "loss", title: "loss", unit: "mean cross entropy", of: (run) => curve(run.steps, "loss"), smooth: true, wide: true },
    { id: "eval_loss", title: "eval loss", unit: "mean cross entropy", of: (run) => curve(run.evaluations, "eval_loss"), points: true },
    { id: "perplexity", title: "perplexity", unit: "of the evaluation", of: (run) => curve(run.evaluations, "perplexity"), points: true },
    { id: "lr", title: "learning rate", unit: "", of: (run) => curve(run.steps, "lr"), zero: true },
    { id: "grad_norm", title: "gradient norm", unit: "before clipping", of: (run) => curve(run.steps, "grad_norm"), smooth: true },
    { id: "tokens_per_s", title: "throughput", unit: "tokens/s, all devices", of: (run) => curve(run.steps, "tokens_per_s"), smooth: true, zero: true },
    { id: "mfu", title: "MFU", unit: "% of the devices' peak", of: (run) => curve(run.steps, "mfu", 100), smooth: true, zero: true },
    { id: "step_time_s", title: "step time", unit: "s", of: (run) => curve(run.steps, "step_time_s"), smooth: true, zero: true },
    { id: "memory", title: "memory", unit: "MB, largest resident set of a rank", of: (run) => curve(run.steps, "memory_mb"), zero: true },
    { id: "saves", title: "saving", unit: "s; below, how long training waited", of: saves, points: true, zero: true, below: "waited" },
    { id: "expert_load", title: "load of experts", unit: "tokens of the busiest over the mean, worst layer; below, mean of the layers", of: load, smooth: true, below: "mean of the layers" },
    { id: "idle_experts", title: "idle experts", unit: "without a token, all layers", of: (run) => curve(run.steps, "idle_experts"), zero: true },
    { id: "aux_loss", title: "auxiliary loss", unit: "of the experts' balance, before its coefficient", of: (run) => curve(run.steps, "aux_loss"), smooth: true },
  ];
  function curve(columns, name, factor = 1) {
    const values = (columns && columns[name]) || [];
    if (!finite(values).length) return null;
    return { x: columns[state.axis] || columns.step, steps: columns.step, y: factor === 1 ? values : values.map((v) => (v === null ? null : v * factor)) };
  }
  function load(run) {
    const worst = curve(run.steps, "expert_load");
    return worst && { ...worst, below: run.steps.expert_load_mean };
  }
  // A save is known by its step; where that is on another axis, the steps tell.
  function place(run, step) {
    const columns = run.steps;
    if (state.axis === "step") return step;
    let low = 0;
    let high = columns.step.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (columns.step[middle] < step) low = middle + 1;
      else high = middle;
    }
    return columns[state.axis][low];
  }
  function saves(run) {
    const found = run.saves;
    if (!found.length || (state.axis !== "step" && !run.steps.step.length)) return null;
    return {
      x: found.map((save) => place(run, save.step)),
      steps: found.map((save) => save.step),
      y: found.map((save) => save.seconds),
      below: found.map((save) => save.blocked_s),
    };
  }
  function smoothed(values, weight) {
    if (!weight) return values;
    let sum = 0;
    let norm = 0;
    return values.map((value) => {
      if (value === null || !Number.isFinite(value)) return null;
      sum = sum * weight + value * (1 - weight);
      norm = norm * weight + (1 - weight);
      return sum / norm;
    });
  }

  // Places for labels: one, two or five times a power of ten.
  function ticks(low, high, count) {
    const span = high - low || Math.abs(high) || 1;
    const raw = span / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-6; at += 1) found.push(at * step);
    return found;
  }
  function logTicks(low, high) {
    const first = Math.floor(Math.log10(low));
    const end = Math.ceil(Math.log10(high));
    const factors = end - first > 3 ? [1] : [1, 2, 5];
    const found = [];
    for (let power = first; power <= end; power += 1) {
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    return found;
  }
  const axisLabel = (value) => (state.axis === "elapsed" ? duration(value) : number(value, 6));

  const shown = () => runs.map((run, index) => ({ run, index })).filter(({ index }) => !state.hidden.has(index));

  // Of all curves, so that what is above each other happened at the same time.
  function wholeRange() {
    const places = shown().flatMap(({ run }) => {
      const steps = run.steps[state.axis];
      const evaluated = run.evaluations[state.axis];
      const saved = state.axis === "step" ? run.saves.map((save) => save.step) : [];
      return [steps, evaluated, saved].flatMap((them) => [least(them), most(them)]);
    });
    const found = [least(places), most(places)];
    return found.every(Number.isFinite) ? found : [0, 1];
  }

  function render(chart) {
    const series = shown()
      .map(({ run, index }) => ({ index, run, curve: chart.of(run) }))
      .filter((one) => one.curve);
    const card = chart.card;
    card.hidden = !series.length;
    if (!series.length) return;
    const holder = chart.holder;
    const width = Math.max(220, holder.clientWidth);
    const height = chart.wide ? 320 : 210;
    const frame = { left: 56, right: width - 10, top: 10, bottom: height - 24 };
    for (const one of series) {
      one.raw = one.curve.y;
      one.y = chart.smooth ? smoothed(one.curve.y, state.smoothing) : one.curve.y;
    }
    let [x0, x1] = state.range || wholeRange();
    if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
    const within = (one) => one.y.filter((_, at) => one.curve.x[at] >= x0 && one.curve.x[at] <= x1);
    let low = Math.min(...series.map((one) => least(within(one))));
    let high = Math.max(...series.map((one) => most(within(one))));
    if (!Number.isFinite(low)) [low, high] = [0, 1];
    const log = state.log.has(chart.id) && low > 0;
    if (chart.zero && !log) low = Math.min(0, low);
    // Smoothing rounds, so a level curve may have a last digit's ups and downs.
    const level = high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high));
    if (level) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
    const room = log ? Math.log(high / low) * 0.04 : (high - low) * 0.05;
    if (log) [low, high] = [low / Math.exp(room), high * Math.exp(room)];
    else [low, high] = [chart.zero && low === 0 ? 0 : low - room, high + room];
    const px = (x) => frame.left + ((x - x0) / (x1 - x0)) * (frame.right - frame.left);
    const part = (y) => (log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low));
    const py = (y) => frame.bottom - part(y) * (frame.bottom - frame.top);

    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${chart.title} over ${state.axis}` });
    const clip = `clip-${chart.id}`;
    const defs = draw("defs", {});
    const clipPath = draw("clipPath", { id: clip });
    clipPath.append(draw("rect", { x: frame.left, y: 0, width: frame.right - frame.left, height }));
    defs.append(clipPath);
    svg.append(defs);
    for (const value of log ? logTicks(low, high) : ticks(low, high, chart.wide ? 7 : 5)) {
      const y = py(value);
      if (y < frame.top - 1 || y > frame.bottom + 1) continue;
      svg.append(draw("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y, y2: y }));
      svg.append(draw("text", { x: frame.left - 8, y: y + 4, "text-anchor": "end", text: number(value) }));
    }
    for (const value of ticks(x0, x1, width / 110)) {
      if (state.axis !== "elapsed" && value % 1) continue;
      const x = px(value);
      const anchor = x > frame.right - 20 ? "end" : "middle";
      svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: frame.bottom, y2: frame.bottom + 4 }));
      svg.append(draw("text", { x, y: frame.bottom + 17, "text-anchor": anchor, text: axisLabel(value) }));
    }
    svg.append(draw("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }));
    const curves = draw("g", { "clip-path": `url(#${clip})` });
    svg.append(curves);
    for (const one of series) {
      const stroke = color(one.index);
      const path = (values) => {
        let text = "";
        let pen = "M";
        values.forEach((value, at) => {
          if (value === null || !Number.isFinite(value) || (log && value <= 0)) {
            pen = "M";
            return;
          }
          text += `${pen}${px(one.curve.x[at]).toFixed(1)} ${py(value).toFixed(1)}`;
          pen = "L";
        });
        return text;
      };
      const single = finite(one.y).length === 1;
      if (one.y !== one.raw) curves.append(draw("path", { class: "raw", d: path(one.raw), style: `stroke:${stroke}` }));
      curves.append(draw("path", { class: "curve", d: path(one.y), style: `stroke:${stroke}` }));
      if (one.curve.below) curves.append(draw("path", { class: "raw", d: path(one.curve.below), style: `stroke:${stroke}` }));
      if (chart.points || single) {
        one.y.forEach((value, at) => {
          if (value === null || !Number.isFinite(value) || (log && value <= 0)) return;
          curves.append(draw("circle", { cx: px(one.curve.x[at]), cy: py(value), r: 3, style: `fill:${stroke}` }));
        });
      }
    }
    const cross = draw("g", { visibility: "hidden" });
    svg.append(cross);
    holder.replaceChildren(svg);
    Object.assign(chart, { series, frame, x0, x1, px, py, cross, width, height });
  }

  const toX = (chart, event) => {
    const box = chart.holder.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * chart.width;
    const part = (pixel - chart.frame.left) / (chart.frame.right - chart.frame.left);
    return chart.x0 + Math.min(1, Math.max(0, part)) * (chart.x1 - chart.x0);
  };
  function nearest(places, x) {
    let low = 0;
    let high = places.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[middle] < x) low = middle + 1;
      else high = middle;
    }
    return low > 0 && x - places[low - 1] < places[low] - x ? low - 1 : low;
  }
  function showTip(event, ...children) {
    const tip = byId("tip");
    tip.replaceChildren(...children);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 16 : event.clientX + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
  }
  function hideTip() {
    byId("tip").hidden = true;
    for (const chart of CHARTS) if (chart.cross) chart.cross.setAttribute("visibility", "hidden");
  }
  function hover(chart, event) {
    const x = toX(chart, event);
    const rows = [];
    let heading = null;
    const marks = [];
    for (const one of chart.series) {
      const at = nearest(one.curve.x, x);
      const value = one.y[at];
      if (heading === null || Math.abs(one.curve.x[at] - x) < Math.abs(heading.x - x)) heading = { x: one.curve.x[at], step: one.curve.steps[at] };
      const extra = one.y !== one.raw ? ` (raw ${number(one.raw[at])})` : one.curve.below ? `, ${chart.below} ${number(one.curve.below[at])}` : "";
      rows.push(make("div", { class: "row" }, dot(one.index), make("span", { text: one.run.name }), make("span", { class: "value", text: `${number(value, 5)}${extra}` })));
      if (value !== null && Number.isFinite(value)) marks.push(draw("circle", { cx: chart.px(one.curve.x[at]), cy: chart.py(value), r: 4, style: `fill:${color(one.index)}` }));
    }
    if (!heading) return;
    const line = chart.px(heading.x);
    chart.cross.replaceChildren(draw("line", { class: "cross", x1: line, x2: line, y1: chart.frame.top, y2: chart.frame.bottom }), ...marks);
    chart.cross.setAttribute("visibility", "visible");
    const where = state.axis === "step" ? `step ${heading.step}` : `step ${heading.step}, ${state.axis === "tokens" ? `${number(heading.x)} tokens` : duration(heading.x)}`;
    showTip(event, make("b", { text: `${chart.title} at ${where}` }), ...rows);
    if (state.drag && state.drag.chart === chart) {
      const from = chart.px(state.drag.from);
      const to = chart.px(x);
      chart.cross.append(draw("rect", { class: "select", x: Math.min(from, to), width: Math.abs(to - from), y: chart.frame.top, height: chart.frame.bottom - chart.frame.top }));
    }
  }
  function zoom(range) {
    state.range = range;
    byId("unzoom").hidden = !range;
    renderAll();
  }

  function buildCharts() {
    for (const chart of CHARTS) {
      const log = make("button", {
        type: "button", "aria-pressed": "false", text: "log", onclick: (event) => {
          if (!state.log.delete(chart.id)) state.log.add(chart.id);
          event.currentTarget.setAttribute("aria-pressed", String(state.log.has(chart.id)));
          render(chart);
        },
      });
      chart.holder = make("div", { class: "plot" });
      chart.card = make(
        "article", { class: chart.wide ? "chart wide" : "chart", "data-chart": chart.id },
        make("div", { class: "head" }, make("h3", {}, chart.title, " ", make("span", { class: "unit", text: chart.unit })), log),
        chart.holder,
      );
      byId("charts").append(chart.card);
      chart.holder.addEventListener("pointermove", (event) => hover(chart, event));
      chart.holder.addEventListener("pointerleave", () => {
        state.drag = null;
        hideTip();
      });
      chart.holder.addEventListener("pointerdown", (event) => {
        if (event.button === 0 && event.pointerType === "mouse") state.drag = { chart, from: toX(chart, event) };
      });
      chart.holder.addEventListener("pointerup", (event) => {
        const drag = state.drag;
        state.drag = null;
        if (!drag || drag.chart !== chart) return;
        const to = toX(chart, event);
        if (Math.abs(chart.px(to) - chart.px(drag.from)) > 6) zoom([Math.min(drag.from, to), Math.max(drag.from, to)]);
      });
      chart.holder.addEventListener("dblclick", () => zoom(null));
    }
  }

  function stateOf(run) {
    const word = run.state || "";
    const kind = word === "FINISHED" ? "good" : word === "ERRORED" ? "bad" : "";
    return make("span", { class: `state ${kind}`, text: word.toLowerCase() });
  }
  function buildRuns() {
    byId("subject").textContent = runs.map((run) => run.name).join(", ");
    document.title = `${runs.map((run) => run.name).join(", ")} · Tandem`;
    byId("made").textContent = `on ${clock(report.made)}`;
    runs.forEach((run, index) => {
      byId("runs").append(make("button", {
        type: "button", "aria-pressed": "true", title: run.path, onclick: (event) => {
          if (!state.hidden.delete(index)) state.hidden.add(index);
          event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(index)));
          renderAll();
        },
      }, dot(index), make("span", { text: run.name }), stateOf(run)));
    });
  }
  function buildTiles() {
    const columns = [
      ["steps", (run) => number(last(run.steps.step), 6)],
      ["tokens", (run) => number(last(run.steps.tokens))],
      ["time", (run) => duration(last(run.steps.elapsed))],
      ["last loss", (run) => number(last(run.steps.loss), 5)],
      ["best loss", (run) => number(least(run.steps.loss), 5)],
      ["last eval loss", (run) => number(last(run.evaluations.eval_loss), 5)],
      ["best eval loss", (run) => number(least(run.evaluations.eval_loss), 5)],
      ["tokens/s", (run) => number(median(run.steps.tokens_per_s))],
      ["MFU", (run) => (finite(run.steps.mfu).length ? `${number(100 * median(run.steps.mfu), 3)} %` : "–")],
      ["memory", (run) => (finite(run.steps.memory_mb).length ? `${number(most(run.steps.memory_mb))} MB` : "–")],
      ["saves", (run) => String(run.saves.length)],
      ["failures", (run) => String(failures(run).length)],
    ];
    const useful = columns.filter(([, text]) => runs.some((run) => text(run) !== "–"));
    const rows = runs.map((run, index) => make("tr", {}, make("th", { scope: "row", title: run.path }, dot(index), run.name), ...useful.map(([, text]) => make("td", { text: text(run) }))));
    byId("tiles").append(make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { text: "run" }), ...useful.map(([name]) => make("th", { scope: "col", text: name })))),
      make("tbody", {}, ...rows))));
    for (const run of runs) if (run.peak_of) run.note = `${run.name}: MFU is a fraction of ${number(run.peak_flops / 1e12)} TFLOP/s (${run.peak_of}, all devices)`;
    const notes = runs.filter((run) => run.note).map((run) => make("span", { text: run.note }));
    if (notes.length) byId("tiles").append(make("div", { class: "key" }, ...notes));
  }

  const failures = (run) => run.attempts.filter((attempt) => attempt.outcome === "failed" || attempt.outcome === "lost");
  // What happened when: attempts as bars, saves as ticks, failures with their reason.
  function renderTimeline() {
    const section = byId("timeline");
    const rows = shown().filter(({ run }) => run.attempts.length || run.saves.length || run.starts.length);
    section.replaceChildren();
    if (!rows.length) return;
    section.append(make("h2", { text: "time line" }));
    const holder = make("div", { class: "scroll" });
    section.append(holder);
    const width = Math.max(320, holder.clientWidth);
    const [left, right, rowHeight] = [Math.min(170, width / 4), width - 14, 34];
    // Runs of different days are laid over each other from their starts.
    let span = 1;
    for (const row of rows) {
      const { run } = row;
      const moments = finite([...run.attempts.flatMap((it) => [it.started, it.ended]), ...run.saves.map((it) => it.time), ...run.starts.map((it) => it.time), run.last_time]);
      row.begin = least(moments);
      row.end = most(moments);
      span = Math.max(span, row.end - row.begin);
    }
    const px = (seconds) => left + (seconds / span) * (right - left);
    const height = rows.length * rowHeight + 30;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "time line of attempts, saves and failures" });
    for (const value of ticks(0, span, width / 130)) {
      svg.append(draw("line", { class: "grid", x1: px(value), x2: px(value), y1: 4, y2: height - 24 }));
      svg.append(draw("text", { x: px(value), y: height - 8, "text-anchor": px(value) > right - 20 ? "end" : "middle", text: duration(value) }));
    }
    const tell = (node, ...lines) => {
      node.addEventListener("pointermove", (event) => showTip(event, ...lines.filter(Boolean).map((line, at) => make(at ? "pre" : "b", { text: line }))));
      node.addEventListener("pointerleave", hideTip);
      svg.append(node);
    };
    rows.forEach(({ run, index, begin, end }, at) => {
      const y = 8 + at * rowHeight;
      const name = draw("text", { x: 12, y: y + 15, text: run.name.length > 22 ? `${run.name.slice(0, 21)}…` : run.name, style: `fill:${color(index)}` });
      svg.append(name);
      const attempts = run.attempts.length ? run.attempts : run.starts.map((start, number) => ({ number, started: start.time, ended: run.starts[number + 1] ? run.starts[number + 1].time : end, outcome: "" }));
      attempts.forEach((attempt, number) => {
        const stop = attempt.ended || end;
        const bad = attempt.outcome === "failed" || attempt.outcome === "lost";
        const from = px(attempt.started - begin);
        const to = Math.max(from + 2, px(stop - begin));
        tell(draw("rect", { class: "attempt", x: from, y: y + 4, width: to - from, height: 16, rx: 3, style: `fill:${color(index)};opacity:0.35` }),
          `${run.name}: start ${number + 1}`, `${clock(attempt.started)}, ${duration(stop - attempt.started)}; ${attempt.outcome || "no end is known"}`);
        if (bad) {
          tell(draw("path", { class: "failure", d: `M${to - 5} ${y + 2}l10 20m0 -20l-10 20`, style: "stroke:var(--bad);stroke-width:2.5;fill:none" }),
            `${run.name}: ${attempt.outcome}, ${clock(stop)}`, attempt.reason);
        }
      });
      for (const save of run.saves) {
        if (!Number.isFinite(save.time)) continue;
        const x = px(save.time - begin);
        tell(draw("rect", { class: "save", x: x - 1.5, y, width: 3, height: 24, style: `fill:${color(index)}` }),
          `${run.name}: ${save.name}`, `step ${save.step}, in ${duration(save.seconds)}, of which training waited ${duration(save.blocked_s)}`);
      }
      for (const failed of run.failed_saves) {
        const x = px(failed.time - begin);
        tell(draw("circle", { cx: x, cy: y + 12, r: 5, style: "fill:var(--bad)" }), `${run.name}: no checkpoint after step ${failed.step}`, failed.problem);
      }
    });
    holder.append(svg, make("div", { class: "key" },
      make("span", {}, make("i", { class: "swatch", style: "background:var(--wait);opacity:0.5" }), "a start of all workers"),
      make("span", {}, make("i", { class: "swatch", style: "background:var(--ink);width:3px" }), "a checkpoint"),
      make("span", {}, make("b", { text: "✕", style: "color:var(--bad)" }), "a failure")));
  }

  // How evenly each layer's experts share the tokens of the last step.
  function renderExperts() {
    const section = byId("experts");
    section.replaceChildren();
    const rows = shown().filter(({ run }) => run.steps.experts);
    if (!rows.length) return;
    section.append(make("h2", { text: "tokens per expert" }));
    const layers = Math.max(...rows.map(({ run }) => run.steps.experts.max_over_mean.length));
    const cell = (run, layer) => make("td", { text: number(run.steps.experts.max_over_mean[layer], 3) });
    const body = make("tbody", {});
    for (let layer = 0; layer < layers; layer += 1) {
      body.append(make("tr", {}, make("th", { scope: "row", text: `${layer}` }), ...rows.map(({ run }) => cell(run, layer))));
    }
    body.append(make("tr", {}, make("th", { scope: "row", text: "experts without a token" }), ...rows.map(({ run }) => make("td", { text: number(run.steps.experts.idle) }))));
    section.append(make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { text: "layer of those with experts: the busiest over the mean" }),
        ...rows.map(({ run, index }) => make("th", { scope: "col" }, dot(index), `${run.name}, step ${run.steps.experts.step}`)))), body)));
  }

  function renderProfile() {
    const section = byId("profile");
    section.replaceChildren();
    const rows = shown().filter(({ run }) => run.profile);
    if (!rows.length) return;
    section.append(make("h2", { text: "where a step's time goes" }));
    const names = [...new Set(rows.flatMap(({ run }) => run.profile.parts.map((part) => part.name)))];
    const swatch = (name) => (name === "other" ? "var(--wait)" : color(names.indexOf(name)));
    const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { text: "ms in a step, rank 0" }), ...rows.map(({ run, index }) => make("th", { scope: "col" }, dot(index), run.name)))));
    const body = make("tbody", {});
    const ms = (run, name) => (run.profile.parts.find((part) => part.name === name) || { ms: NaN }).ms;
    for (const name of names) {
      body.append(make("tr", {}, make("th", { scope: "row" }, make("span", { class: "dot", style: `background:${swatch(name)}` }), name),
        ...rows.map(({ run }) => make("td", { text: Number.isFinite(ms(run, name)) ? `${number(ms(run, name))}  (${number((100 * ms(run, name)) / run.profile.step_ms, 3)} %)` : "–" }))));
    }
    body.append(make("tr", {}, make("th", { scope: "row", text: "step" }), ...rows.map(({ run }) => make("td", { text: number(run.profile.step_ms) }))));
    table.append(body);
    const card = make("div", { class: "scroll" });
    for (const { run } of rows) {
      const bar = make("div", { class: "bar", title: run.name });
      for (const part of run.profile.parts) {
        const piece = make("i", { style: `background:${swatch(part.name)};flex:${Math.max(0, part.ms)} 0 0` });
        piece.addEventListener("pointermove", (event) => showTip(event, make("b", { text: `${run.name}: ${part.name}` }), make("div", { text: `${number(part.ms)} ms, ${number((100 * part.ms) / run.profile.step_ms, 3)} % of a step` })));
        piece.addEventListener("pointerleave", hideTip);
        bar.append(piece);
      }
      card.append(bar);
    }
    card.append(table);
    section.append(card);
  }

  function buildFlags() {
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.flags)))].sort();
    if (!names.length) return;
    const text = (value) => (value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
    const differs = (name) => new Set(runs.map((run) => text(run.flags[name]))).size > 1;
    const table = (chosen) => make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { text: "flag" }), ...runs.map((run, index) => make("th", { scope: "col" }, dot(index), run.name)))),
      make("tbody", {}, ...chosen.map((name) => make("tr", { class: differs(name) ? "differs" : null }, make("th", { scope: "row", text: name }), ...runs.map((run) => make("td", { class: "value", text: text(run.flags[name]) })))))));
    const section = byId("flags");
    section.append(make("h2", { text: "what the runs were" }));
    const facts = runs.flatMap((run, index) => run.facts.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, dot(index), `${run.name}: ${name}`), make("td", { class: "value", text: value }))));
    if (facts.length) section.append(make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...facts))));
    const different = names.filter(differs);
    if (runs.length > 1) section.append(make("h2", { text: different.length ? "flags that differ" : "no flag differs" }));
    if (runs.length > 1 && different.length) section.append(table(different));
    section.append(make("details", {}, make("summary", { text: `all ${names.length} flags` }), table(names)));
  }
  function buildProblems() {
    const found = runs.flatMap((run) => run.problems.map((text) => make("p", { class: "problem", text: `${run.name}: ${text}` })));
    if (found.length) byId("problems").append(make("h2", { text: "what could not be read" }), ...found);
  }

  function renderAll() {
    hideTip();
    CHARTS.forEach(render);
    renderTimeline();
    renderExperts();
    renderProfile();
  }
  byId("axes").addEventListener("click", (event) => {
    const axis = event.target.dataset.axis;
    if (!axis) return;
    state.axis = axis;
    for (const button of byId("axes").children) button.setAttribute("aria-pressed", String(button.dataset.axis === axis));
    zoom(null);
  });
  byId("smoothing").addEventListener("input", (event) => {
    state.smoothing = Number(event.target.value);
    byId("smoothed").textContent = event.target.value;
    renderAll();
  });
  byId("unzoom").addEventListener("click", () => zoom(null));
  byId("theme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const usual = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const next = (dataset.theme || usual) === "dark" ? "light" : "dark";
    // What the system wants is followed when it changes its mind.
    if (next === usual) delete dataset.theme;
    else dataset.theme = next;
  });
  buildRuns();
  buildTiles();
  buildCharts();
  buildFlags();
  buildProblems();
  renderAll();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) renderAll();
    width = innerWidth;
  });
})();
