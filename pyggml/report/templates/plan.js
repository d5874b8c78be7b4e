"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const S = D.strings, C = D.cols, N = D.n, TOTAL = C.name.length, DEVICES = D.devices, H = 30;
  const $ = (id) => document.getElementById(id);
  const grid = $("grid"), heads = $("heads"), body = $("rows"), search = $("search"), details = $("details"), selected = $("selected");

  function el(tag, cls, text) {
    const e = document.createElement(tag);
    if (cls) e.className = cls;
    if (text !== undefined && text !== "") e.textContent = text;
    return e;
  }
  function svg(tag, attributes, parent) {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const k in attributes) e.setAttribute(k, attributes[k]);
    if (parent) parent.append(e);
    return e;
  }
  const name = (i) => S[C.name[i]], op = (i) => S[C.op[i]], type = (i) => S[C.type[i]], split = (i) => S[C.split[i]];
  const ne = (i) => S[C.ne[i]], look = (i) => C.look[i], held = (i) => D.held[C.held[i]], isView = (i) => S[C.what[i]] === "view";
  const marks = (i) => (C.marks[i] ? S[C.marks[i]] : "");
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  function binary(n) {
    let k = 0;
    while (n >= 1023.95 && k < 4) { n /= 1024; k++; }
    return (k === 0 ? n : n.toFixed(k > 2 ? 2 : 1)) + " " + units[k];
  }
  const micro = (us) => us >= 1e6 ? (us / 1e6).toFixed(2) + " s" : us >= 1000 ? (us / 1000).toFixed(2) + " ms" : us.toFixed(1) + " µs";

  // who reads what, and what a row is found by: made when first asked for
  let readers = null, haystacks = null;
  function users(i) {
    if (!readers) {
      readers = new Map();
      C.src.forEach((sources, k) => new Set(sources).forEach((s) => readers.has(s) ? readers.get(s).push(k) : readers.set(s, [k])));
    }
    return readers.get(i) || [];
  }
  function haystack(i) {
    if (!haystacks) haystacks = new Array(TOTAL);
    return haystacks[i] ??= `${name(i)} ${op(i)} ${type(i)} ${split(i)} ${S[C.what[i]]} ${ne(i)} ${marks(i)}`.toLowerCase();
  }

  // pieces of layers: the k-th piece of a layer corresponds to the k-th one of a layer that is equal to it
  const pieceOf = new Int32Array(N), ordinal = [], byLayer = new Map();
  D.pieces.forEach((p, k) => {
    pieceOf.fill(k, p[1], p[2]);
    if (p[0] < 0) return;
    if (!byLayer.has(p[0])) byLayer.set(p[0], []);
    ordinal[k] = byLayer.get(p[0]).length;
    byLayer.get(p[0]).push(k);
  });
  const single = D.pieces.length < 2;
  const order = [];
  D.first.forEach((i) => order.push(i));
  for (let i = 0; i < N; i++) { (D.reads[i] || []).forEach((leaf) => order.push(leaf)); order.push(i); }

  const state = { tab: "graph", detail: D.detail, fold: true, words: [], sort: null, open: new Map(), shown: new Map(), cursor: 0, selected: null };
  let rows = [], rowOf = new Int32Array(TOTAL), rails = null, sources = new Set(), usersOf = new Set();

  const mode = () => state.detail === "all" ? 4 : 3;
  const layersAlike = (p) => D.groups[p[mode()]];
  const shownLayer = (p) => state.shown.get(p[mode()]) ?? layersAlike(p)[0];
  const isShown = (p) => !state.fold || p[0] < 0 || shownLayer(p) === p[0];
  const isOpen = (k) => state.open.get(k) ?? state.detail !== "layers";

  function buildRows() {
    rows = [];
    if (state.words.length || state.sort) {
      let found = order.filter((i) => state.words.every((w) => haystack(i).includes(w)));
      if (!state.words.length && state.detail !== "all") found = found.filter((i) => i < N && !isView(i));
      if (state.sort) found = sorted(found);
      rows = found.map((i) => ({ kind: "item", i }));
    } else {
      const all = state.detail === "all";
      if (all && D.first.length) {
        rows.push({ kind: "group", key: "first", title: "inputs and weights of no layer", n: D.first.length });
        if (isOpen("first")) D.first.forEach((i) => rows.push({ kind: "item", i }));
      }
      D.pieces.forEach((p, k) => {
        if (!isShown(p)) return;
        if (!single) rows.push({ kind: "group", key: k, piece: p });
        if (!single && !isOpen(k)) return;
        for (let i = p[1]; i < p[2]; i++) {
          if (all) (D.reads[i] || []).forEach((leaf) => rows.push({ kind: "item", i: leaf }));
          const reduce = D.reduces[i];
          if (all || !isView(i) || reduce) rows.push({ kind: "item", i });
          if (state.tab !== "graph") continue;
          if (D.times && D.times[C.sub[i]] && i === D.subs[C.sub[i]][1] - 1) rows.push({ kind: "time", i });
          if (reduce) rows.push({ kind: "reduce", i });
        }
      });
    }
    rowOf.fill(-1);
    rows.forEach((row, r) => { if (row.kind === "item") rowOf[row.i] = r; });
    rails = state.tab === "graph" && !state.words.length ? railsOf() : null;
    $("count").textContent = state.words.length ? `${rows.length.toLocaleString("en")} of ${TOTAL.toLocaleString("en")}` : "";
    grid.setAttribute("aria-rowcount", rows.length + 1);
  }

  // the flow of values beside the rows: a column for each value, from the row that makes it to the last that reads it
  function railsOf() {
    const at = Int32Array.from(rowOf);
    const folded = (i) => {
      const p = D.pieces[pieceOf[i]];
      if (p[0] < 0 || !state.fold) return i;
      const other = byLayer.get(shownLayer(p));
      return other ? D.pieces[other[ordinal[pieceOf[i]]]]?.[1] + i - p[1] : i;
    };
    rows.forEach((row, r) => {
      if (row.kind === "group" && row.piece && !isOpen(row.key)) at.fill(r, row.piece[1], row.piece[2]);
      if (row.kind === "reduce") at[row.i] = r;
    });
    const inputs = rows.map(() => []), last = new Int32Array(rows.length);
    function resolve(i, r, into, depth) {
      const k = at[i] >= 0 ? i : folded(i);
      if (at[k] >= 0) { if (at[k] < r) into.add(at[k]); return; }
      if (depth < 12 && isView(k)) C.src[k].forEach((s) => s < N && resolve(s, r, into, depth + 1));
    }
    rows.forEach((row, r) => {
      const into = new Set();
      if (row.kind === "item" && row.i < N) C.src[row.i].forEach((s) => s < N && resolve(s, r, into, 0));
      if (row.kind === "reduce") into.add(rowOf[row.i]);
      if (row.kind === "group" && row.piece && !isOpen(row.key))
        for (let i = row.piece[1]; i < row.piece[2]; i++) C.src[i].forEach((s) => s < N && (s < row.piece[1] || s >= row.piece[2]) && resolve(s, r, into, 0));
      inputs[r] = [...into];
      into.forEach((s) => { last[s] = r; });
    });
    const columns = [], out = new Array(rows.length);
    let width = 0;
    rows.forEach((row, r) => {
      const before = columns.slice(), from = inputs[r].map((s) => columns.indexOf(s)).filter((c) => c >= 0);
      for (let c = 0; c < columns.length; c++) if (columns[c] !== undefined && last[columns[c]] <= r) columns[c] = undefined;
      const draws = (row.kind === "item" && row.i < N) || row.kind === "reduce" || from.length > 0;
      let own = from.filter((c) => columns[c] === undefined).sort((a, b) => a - b)[0];
      if (own === undefined) { own = 0; while (columns[own] !== undefined) own++; }
      if (draws && last[r] > r) columns[own] = r;
      const pass = [];
      before.forEach((s, c) => { if (s !== undefined && columns[c] === s) pass.push([c, s]); });
      out[r] = { own: draws ? own : -1, from: from.map((c) => [c, before[c]]), pass, down: last[r] > r };
      width = Math.max(width, own, columns.length - 1);
    });
    out.width = Math.min(width, 9);
    return out;
  }
  const narrow = () => grid.clientWidth < 640;
  const X = (c) => 12 + Math.min(c, narrow() ? 2 : 9) * 11;
  function gutter(r, row) {
    const cell = el("div", "gutter");
    cell.setAttribute("aria-hidden", "true");
    if (!rails) return cell;
    const g = rails[r], s = svg("svg", { width: X(rails.width) + 10, height: H, "aria-hidden": "true" }, null);
    const near = (a) => state.selected && row.i !== undefined && rows[a] && rows[a].i === state.selected.i ? "near" : "";
    g.pass.forEach(([c, a]) => svg("path", { d: `M${X(c)} 0V${H}`, class: near(a) }, s));
    g.from.forEach(([c, a]) => svg("path", {
      d: c === g.own ? `M${X(c)} 0V${H / 2}` : `M${X(c)} 0C${X(c)} ${H / 2} ${X(g.own)} 2 ${X(g.own)} ${H / 2}`,
      class: state.selected && rows[a].i === state.selected.i || state.selected && row.i === state.selected.i ? "near" : "",
    }, s));
    if (g.down) svg("path", { d: `M${X(g.own)} ${H / 2}V${H}`, class: state.selected && row.i === state.selected.i ? "near" : "" }, s);
    if (g.own >= 0 && row.kind === "reduce") svg("rect", { x: X(g.own) - 5, y: H / 2 - 5, width: 10, height: 10, transform: `rotate(45 ${X(g.own)} ${H / 2})` }, s);
    else if (g.own >= 0 && row.kind === "item") svg("circle", { cx: X(g.own), cy: H / 2, r: 4, class: look(row.i) }, s);
    else if (g.own >= 0) svg("rect", { x: X(g.own) - 4, y: H / 2 - 4, width: 8, height: 8, rx: 2 }, s);
    cell.append(s);
    return cell;
  }

  // the chain of causes, as str(Explanation) gives it
  const W = D.why, layered = (text, i) => S[text].replace(/\u0002(-?\d+)\u0002/g, (all, n) => `node_${i + Number(n)}`).replaceAll("\u0001", C.layer[i]);
  function whyLines(i) {
    const known = new Map(), pushed = new Set([i]), first = [[i, false]];
    while (first.length) {
      const [at, ended] = first.pop(), causes = ended ? [] : W.causes[at];
      known.set(at, [causes, ended]);
      for (let k = causes.length - 1; k >= 0; k--) if (!pushed.has(causes[k])) {
        pushed.add(causes[k]);
        first.push([causes[k], W.ends[at].includes(k)]);
      }
    }
    const lines = [], seen = new Set(), stack = [[i, 0, []]];
    while (stack.length) {
      const [at, depth, via] = stack.pop(), [causes, ended] = known.get(at);
      if (seen.has(at)) continue;
      seen.add(at);
      const passes = !ended && W.passes[at];
      if (passes && depth) {
        stack.push([causes[0], depth, [...via, op(at)]]);
        continue;
      }
      const ops = via.reverse().filter((o, k, all) => !k || all[k - 1] !== o);
      lines.push([depth, (ops.length ? `via ${ops.join(", ")}: ` : "") + layered(ended ? W.summed[at] : depth ? W.text[at] : W.head[at], at), at]);
      for (let k = causes.length - 1; k >= 0; k--) stack.push([causes[k], depth + 1, []]);
    }
    return lines;
  }

  const COLUMNS = [
    ["#", (i) => i], ["node", name], ["op", op], ["type", type], ["ne", (i) => numbers(ne(i))], ["split", split],
    ["per device", (i) => S[C.per[i]]], ["bytes", (i) => C.bytes[i]], ["subgraph", (i) => C.sub[i]],
    ["all-reduce", (i) => D.reduces[i] ? D.reduces[i].bytes : 0],
  ];
  const numbers = (shape) => shape.split("x").reduce((a, b) => a * b, 1);
  function sorted(list) {
    const [column, direction] = state.sort, key = COLUMNS[column][1];
    const keys = new Map(list.map((i) => [i, key(i)]));
    return list.slice().sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      return (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) * direction || a - b;
    });
  }

  function layout() {
    const small = narrow(), lanes = DEVICES.length, lane = lanes > 4 ? 70 : small ? 78 : lanes > 2 ? 92 : 120, wide = small ? 118 : lanes > 4 ? 150 : 190;
    heads.replaceChildren();
    if (state.tab === "graph") {
      const g = rails ? X(rails.width) + 14 : 12, op = small ? "" : " 128px", s = 50, fixed = g + wide + (small ? 0 : 128) + s;
      grid.style.setProperty("--columns", `${g}px minmax(${wide}px, 1.2fr)${op} ${s}px repeat(${lanes}, minmax(${lane}px, 1fr)) 8px`);
      grid.classList.toggle("many", lanes > 4);
      grid.style.setProperty("--min", `${fixed + lanes * lane + 8}px`);
      const names = ["", "node", ...(small ? [] : ["op"]), "split"];
      names.forEach((n) => heads.append(n ? head(n) : el("div", "")));
      DEVICES.forEach((d, j) => { const h = head(d, "lane"); h.title = d; h.prepend(el("i", `swatch d${j % 16}`)); heads.append(h); });
    } else {
      grid.style.setProperty("--columns", "46px minmax(190px, 1.6fr) 128px 50px minmax(84px, .5fr) minmax(100px, .6fr) minmax(124px, 1fr) 82px 78px 88px");
      grid.style.setProperty("--min", "980px");
      COLUMNS.forEach(([n], k) => {
        const h = head("", k === 0 || k > 6 ? "right" : ""), b = el("button", "", n + (state.sort && state.sort[0] === k ? (state.sort[1] > 0 ? " ↑" : " ↓") : ""));
        b.type = "button";
        b.tabIndex = -1;
        b.dataset.column = k;
        b.title = `Sort by ${n}`;
        h.setAttribute("aria-sort", !state.sort || state.sort[0] !== k ? "none" : state.sort[1] > 0 ? "ascending" : "descending");
        h.append(b);
        heads.append(h);
      });
    }
  }
  function head(text, cls) {
    const h = el("div", cls, text);
    h.setAttribute("role", "columnheader");
    return h;
  }

  // names are untrusted: text nodes only
  function marked(cell, text) {
    const lower = text.toLowerCase(), spans = [];
    state.words.forEach((w) => { for (let k = lower.indexOf(w); k >= 0; k = lower.indexOf(w, k + w.length)) spans.push([k, k + w.length]); });
    spans.sort((a, b) => a[0] - b[0]);
    let at = 0;
    spans.forEach(([a, b]) => {
      if (a < at) return;
      cell.append(text.slice(at, a), el("mark", "", text.slice(a, b)));
      at = b;
    });
    cell.append(text.slice(at));
    return cell;
  }
  function cell(cls, text, plain) {
    const c = plain ? el("div", cls, text) : marked(el("div", cls), text);
    c.setAttribute("role", "gridcell");
    return c;
  }
  function nameCell(row, r) {
    const i = row.i, c = cell("name", name(i)), m = marks(i);
    c.title = name(i);
    if (m) c.append(el("span", "relation", m));
    if (sources.has(i)) c.append(el("span", "relation", "source"));
    else if (usersOf.has(i)) c.append(el("span", "relation", "reader"));
    if (state.words.length && C.layer[i] >= 0 && !name(i).includes(String(C.layer[i]))) c.append(el("span", "relation", `layer ${C.layer[i]}`));
    return c;
  }
  function badge(i) {
    // how much each device has is in its lane
    const c = cell(`badge ${look(i)}`, state.tab === "graph" ? split(i).split(" ")[0] : split(i));
    c.title = split(i);
    return c;
  }

  // a device's part of the axis, drawn where it lies
  function track(i, j) {
    const bands = D.bands[C.bands[i]];
    if (look(i) === "M") return el("span", "track whole");
    if (look(i) === "P") return el("span", D.slices[C.slices[i]][j][2] ? "track sum" : "track nothing");
    const t = el("span", "track");
    if (!bands.length) return el("span", "track nothing");
    const length = bands[bands.length - 1][1] + bands[bands.length - 1][2], mine = bands.filter((b) => b[0] === j);
    // more stretches than a bar has room for: every k-th, as wide as k of them
    const step = Math.ceil(mine.length / 24);
    for (let k = 0; k < mine.length; k += step) {
      const part = el("i", `d${j % 16}`);
      part.style.left = `${(100 * mine[k][1]) / length}%`;
      part.style.width = `${(100 * step * mine[k][2]) / length}%`;
      t.append(part);
    }
    return t;
  }
  // a leaf stands with the node that reads it first
  const leafSub = new Map();
  for (const i in D.reads) D.reads[i].forEach((leaf) => leafSub.set(leaf, C.sub[i]));
  const subOf = (i) => i < N ? C.sub[i] : leafSub.get(i) ?? -1;
  const inSubgraph = (k, sub) => rows[k] && (rows[k].kind === "item" || rows[k].kind === "time") && subOf(rows[k].i) === sub;
  // how long each device took for the subgraph that ends here, and waited behind it
  function timeLanes(row, r, into) {
    const sub = C.sub[row.i], [compute, wait, reduce] = D.times[sub];
    const total = DEVICES.map((d, j) => (compute[j] || 0) + (wait[j] || 0) + (reduce[j] || 0)), most = Math.max(...total) || 1;
    const edge = (inSubgraph(r - 1, sub) ? "" : " first") + (inSubgraph(r + 1, sub) ? "" : " last");
    DEVICES.forEach((d, j) => {
      const c = cell(`lane${edge}`, compute[j] === null ? "-" : micro(compute[j]), true), t = el("span", `track d${j % 16}`);
      c.title = `${d}: computes ${micro(compute[j] || 0)}, waits ${micro(wait[j] || 0)}, sums ${micro(reduce[j] || 0)}`;
      [["compute", compute[j]], ["wait", wait[j]], ["reduce", reduce[j]]].forEach(([key, us]) => {
        const part = el("i", `t-${key}`);
        part.style.width = `${(100 * (us || 0)) / most}%`;
        t.append(part);
      });
      c.append(t);
      into.append(c);
    });
  }
  function lanes(row, r, into) {
    const i = row.i, words = held(i), sub = subOf(i);
    const same = (k) => inSubgraph(k, sub);
    const edge = (same(r - 1) ? "" : " first") + (same(r + 1) ? "" : " last");
    DEVICES.forEach((d, j) => {
      const c = cell(`lane ${look(i) || "none"}${edge}`, words.length ? S[words[j]] : "-", true);
      c.title = `${d}: ${words.length ? S[words[j]] : "nothing"}`;
      if (words.length && S[words[j]] !== "-") c.append(track(i, j));
      else c.append(el("span", "track nothing"));
      into.append(c);
    });
  }

  function groupRow(row, e) {
    const open = isOpen(row.key), p = row.piece, title = cell("title", "", true);
    // a closed one says what of its weights and caches each device has
    const shares = !open && p && state.tab === "graph";
    title.style.gridColumn = shares ? `1 / ${narrow() ? 4 : 5}` : "1 / -1";
    e.setAttribute("aria-expanded", open);
    title.append(el("i", "chevron"));
    if (!p) {
      title.append(el("span", "", row.title), el("span", "words", String(row.n)));
      e.append(title);
      return;
    }
    const alike = layersAlike(p), many = state.fold && p[0] >= 0 && alike.length > 1;
    title.append(el("span", "", many ? D.titles[p[mode()]] : S[p[5]]));
    if (many) {
      title.append(el("span", "times", `${alike.length} x`));
      const step = el("span", "step"), at = alike.indexOf(p[0]);
      [["‹", -1, "previous"], null, ["›", 1, "next"]].forEach((b) => {
        if (!b) return step.append(`shown: ${p[0]}`);
        const button = el("button", "", b[0]);
        button.type = "button";
        button.tabIndex = -1;
        button.title = `Show the ${b[2]} of these layers`;
        button.setAttribute("aria-label", button.title);
        button.dataset.step = b[1];
        step.append(button);
      });
      title.append(step);
    }
    const words = S[p[6]] + (D.times ? pieceTime(p, row.key) : "");
    title.append(el("span", "words", words));
    title.title = many ? `layers ${alike.join(", ")}: ${words}` : words;
    e.append(title);
    if (shares) weightsOf(p).forEach((n, j, all) => {
      const c = cell("lane first last", n ? binary(n) : "-", true), t = el("span", "track"), part = el("i", `d${j % 16}`), sum = all.reduce((a, b) => a + b, 0);
      c.title = `${DEVICES[j]}: ${binary(n)} of weights and caches, first read here`;
      part.style.left = `${sum ? (100 * all.slice(0, j).reduce((a, b) => a + b, 0)) / sum : 0}%`;
      part.style.width = `${sum ? (100 * n) / sum : 0}%`;
      t.append(part);
      c.append(n ? t : el("span", "track nothing"));
      e.append(c);
    });
  }
  function weightsOf(p) {
    const out = DEVICES.map(() => 0);
    for (let i = p[1]; i < p[2]; i++) (D.reads[i] || []).forEach((leaf) => D.slices[C.slices[leaf]].forEach((x, j) => { if (S[C.what[leaf]] !== "input") out[j] += x[1]; }));
    return out;
  }

  function makeRow(r) {
    const row = rows[r], e = el("div", "row");
    e.id = `row-${r}`;
    e.setAttribute("role", "row");
    e.setAttribute("aria-rowindex", r + 2);
    e.style.top = `${r * H}px`;
    e.dataset.r = r;
    if (r === state.cursor) e.classList.add("cursor");
    e.setAttribute("aria-selected", r === state.cursor);
    if (row.kind === "group") {
      e.classList.add("group");
      e.setAttribute("aria-level", 1);
      groupRow(row, e);
      return e;
    }
    e.setAttribute("aria-level", 2);
    const i = row.i;
    if (row.kind === "time") {
      e.classList.add("time");
      const label = cell("name", `measured: subgraph ${C.sub[i]}`, true);
      label.style.gridColumn = narrow() ? "2 / span 2" : "2 / span 3";
      e.append(gutter(r, row), label);
      timeLanes(row, r, e);
      return e;
    }
    if (row.kind === "reduce") {
      e.classList.add("reduce");
      const x = D.reduces[i], label = cell("name", `all-reduce ${binary(x.bytes)}`, true), across = cell("across", "", true);
      label.style.gridColumn = narrow() ? "2 / span 2" : "2 / span 3";
      across.style.gridColumn = `span ${DEVICES.length}`;
      across.style.gridTemplateColumns = `repeat(${DEVICES.length}, 1fr)`;
      across.title = S[x.text];
      x.computes.forEach((c) => across.append(el("span", "", c ? "Σ" : "0")));
      across.setAttribute("aria-label", S[x.text]);
      e.append(gutter(r, row), label, across);
      return e;
    }
    e.classList.add(S[C.what[i]] === "node" ? "node" : isView(i) ? "view" : "leaf");
    if (sources.has(i)) e.classList.add("source");
    if (usersOf.has(i)) e.classList.add("user");
    if (state.tab === "graph") {
      e.append(gutter(r, row), nameCell(row, r));
      if (!narrow()) e.append(cell("small", op(i)));
      e.append(badge(i));
      lanes(row, r, e);
    } else {
      const x = D.reduces[i], each = S[C.per[i]];
      e.append(cell("small right", i < N ? String(i) : "", true), nameCell(row, r), cell("small", op(i)), cell("small", type(i)), cell("small mono", ne(i)), badge(i));
      const per = cell("small mono", each, true);
      per.title = each;
      e.append(per, cell("small right", binary(C.bytes[i]), true), cell("small right", i < N ? String(C.sub[i]) : "", true), cell("small right badge P", x ? binary(x.bytes) : "", true));
    }
    return e;
  }

  const live = new Map();
  let waiting = false;
  function paint() {
    waiting = false;
    const top = grid.scrollTop, first = Math.max(0, Math.floor(top / H) - 6), stop = Math.min(rows.length, Math.ceil((top + grid.clientHeight) / H) + 6);
    for (const [r, e] of live) if (r < first || r >= stop) { e.remove(); live.delete(r); }
    const fresh = document.createDocumentFragment();
    for (let r = first; r < stop; r++) if (!live.has(r)) { const e = makeRow(r); live.set(r, e); fresh.append(e); }
    body.append(fresh);
    if (rows.length) grid.setAttribute("aria-activedescendant", `row-${state.cursor}`);
    else grid.removeAttribute("aria-activedescendant");
  }
  function repaint() {
    live.clear();
    body.replaceChildren();
    body.style.height = `${rows.length * H}px`;
    if (!rows.length) body.append(el("p", "noscript muted", "Nothing is called that. Names, ops, types (q4_K), splits (S1) and kinds (weight, input) are searched."));
    paint();
  }
  const keyOf = (row) => row && `${row.kind}${row.key ?? row.i}`;
  // everything anew; the cursor stays at its row where that is still there
  function refresh(top) {
    const began = performance.now(), key = keyOf(rows[state.cursor]);
    buildRows();
    const at = rows.findIndex((row) => keyOf(row) === key);
    state.cursor = at >= 0 ? at : 0;
    layout();
    if (top) grid.scrollTop = 0;
    repaint();
    if (!top) reveal();
    performance.clearMeasures("pyggml:refresh");
    performance.measure("pyggml:refresh", { start: began, end: performance.now() });
  }
  function reveal() {
    const y = state.cursor * H, room = grid.clientHeight - heads.offsetHeight;
    if (y < grid.scrollTop) grid.scrollTop = y - H;
    else if (y + H > grid.scrollTop + room) grid.scrollTop = y + H - room + H;
    paint();
  }
  function moveTo(r) {
    if (!rows.length) return;
    const old = live.get(state.cursor);
    if (old) { old.classList.remove("cursor"); old.setAttribute("aria-selected", "false"); }
    state.cursor = Math.max(0, Math.min(rows.length - 1, r));
    reveal();
    const e = live.get(state.cursor);
    if (e) { e.classList.add("cursor"); e.setAttribute("aria-selected", "true"); }
    // open details follow the cursor
    if (state.selected && rows[state.cursor].kind !== "group") choose(rows[state.cursor]);
  }

  function toggle(key, open) {
    state.open.set(key, open ?? !isOpen(key));
    refresh(false);
  }
  function act(row) {
    if (!row) return;
    if (row.kind === "group") toggle(row.key);
    else choose(row);
  }
  function stepLayer(row, by) {
    // the group above the cursor
    let r = rows.indexOf(row);
    while (r >= 0 && !(rows[r].kind === "group" && rows[r].piece)) r--;
    if (r < 0) return;
    const p = rows[r].piece, alike = layersAlike(p);
    if (p[0] < 0 || !state.fold || alike.length < 2) return;
    const layer = alike[(alike.indexOf(p[0]) + by + alike.length) % alike.length], k = ordinal[rows[r].key], distance = state.cursor - r, open = isOpen(rows[r].key);
    state.shown.set(p[mode()], layer);
    byLayer.get(layer).forEach((other) => state.open.set(other, open));
    buildRows();
    state.cursor = Math.max(0, rows.findIndex((x) => x.kind === "group" && x.key === byLayer.get(layer)[k])) + distance;
    layout();
    repaint();
    reveal();
    if (state.selected && rows[state.cursor].kind !== "group") choose(rows[state.cursor]);
  }

  // to a node or leaf wherever it is: another of equal layers is shown, layers are opened, views and weights too
  function goTo(i, kind = "item") {
    search.value = "";
    state.words = [];
    state.sort = null;
    if ((i >= N || (isView(i) && !D.reduces[i])) && state.detail !== "all") setDetail("all", false);
    const reader = i < N ? i : users(i)[0];
    if (reader !== undefined && !(i >= N && D.first.includes(i))) {
      const k = pieceOf[reader], p = D.pieces[k];
      if (p[0] >= 0) state.shown.set(p[mode()], p[0]);
      state.open.set(k, true);
    } else state.open.set("first", true);
    if (kind === "reduce" && state.tab !== "graph") kind = "item";
    buildRows();
    layout();
    repaint();
    const r = rows.findIndex((row) => row.kind === kind && row.i === i);
    if (r < 0) return;
    state.cursor = r;
    grid.scrollTop = Math.max(0, r * H - grid.clientHeight / 3);
    repaint();
    choose(rows[r]);
    grid.focus({ preventScroll: true });
  }

  let addressing = 0;
  function choose(row) {
    state.selected = row;
    const along = (i, next, found = new Set()) => {
      // through views, which may not be shown
      next(i).forEach((k) => { if (!found.has(k)) { found.add(k); if (k < N && isView(k)) along(k, next, found); } });
      return found;
    };
    sources = row && row.kind === "item" && row.i < N ? along(row.i, (i) => i < N ? C.src[i] : []) : new Set();
    usersOf = row && row.kind === "item" ? along(row.i, users) : new Set();
    selected.replaceChildren();
    if (row) {
      const close = el("button", "close", "Close");
      close.type = "button";
      close.addEventListener("click", () => { choose(null); grid.focus(); });
      selected.append(close);
      row.kind === "reduce" ? reduceDetails(row.i) : itemDetails(row.i);
      details.scrollTop = 0;
    }
    repaint();
    // browsers count changes of the address: not one for each key that is held
    clearTimeout(addressing);
    addressing = setTimeout(() => {
      try { history.replaceState(null, "", row ? `#${row.kind === "reduce" ? "sum" : "n"}${row.i}` : location.pathname + location.search); } catch { /* a page without an address */ }
    }, 250);
  }

  function link(i, note) {
    const item = el("li"), b = el("button");
    b.type = "button";
    b.dataset.go = i;
    b.append(el("span", "mono", name(i)), el("span", "small", note ?? `${op(i)} ${split(i)}`));
    item.append(b);
    return item;
  }
  function links(title, list, into, note) {
    if (!list.length) return;
    into.append(el("h3", "", title));
    const ul = el("ul", "links"), shown = list.slice(0, 12);
    shown.forEach((i) => ul.append(link(i, note)));
    into.append(ul);
    if (list.length > shown.length) {
      const more = el("button", "", `${list.length - shown.length} more`);
      more.type = "button";
      more.addEventListener("click", () => { list.slice(12).forEach((i) => ul.append(link(i, note))); more.remove(); });
      into.append(more);
    }
  }

  function picture(i, into) {
    const box = el("div", "pictured"), bands = D.bands[C.bands[i]], words = held(i);
    if (!words.length) return;
    if (look(i) !== "S") {
      const copies = el("div", "copies"), shown = DEVICES.slice(0, 8);
      shown.forEach((d, j) => {
        const nothing = S[words[j]] === "-", b = el("div", `box d${j}${look(i) === "P" ? " summand" : ""}${nothing ? " nothing" : ""}`, nothing ? "nothing" : d);
        if (look(i) === "P" && j) copies.append("+");
        copies.append(b);
      });
      if (DEVICES.length > shown.length) copies.append(`… ${DEVICES.length} devices`);
      box.append(copies);
      into.append(box);
      return;
    }
    const shape = ne(i).split("x").map(Number), axis = C.axis[i], length = shape[axis] ?? 1, flat = axis === 0;
    const b = el("div", "box"), step = Math.ceil(bands.length / 400);
    b.style.height = shape.length < 2 ? "34px" : "112px";
    for (let k = 0; k < bands.length; k += step) {
      const [j, start, n] = bands[k], part = el("i", `d${j % 16}`);
      part.style[flat ? "left" : "top"] = `${(100 * start) / length}%`;
      part.style[flat ? "width" : "height"] = `${(100 * n) / length}%`;
      part.style[flat ? "top" : "left"] = "0";
      part.style[flat ? "height" : "width"] = "100%";
      part.title = `${DEVICES[j]}: ${start} to ${start + n - 1} of axis ${axis}`;
      b.append(part);
    }
    const scale = el("div", "axis");
    scale.append(el("span", "", flat ? `axis 0: ${length.toLocaleString("en")} →` : `axis ${axis}: ${length.toLocaleString("en")} ↓`));
    if (shape.length > 1) scale.append(el("span", "", flat ? `axis 1: ${shape[1].toLocaleString("en")} ↓` : `axis 0: ${shape[0].toLocaleString("en")} →`));
    box.append(b, scale);
    into.append(box);
  }

  function facts(parts, into) {
    const p = el("p", "facts");
    parts.filter((x) => x).forEach((x, k) => p.append(k ? " · " : "", x));
    into.append(p);
  }
  function itemDetails(i) {
    selected.append(el("h2", "", name(i)));
    const strong = el("b", "", op(i));
    facts([strong, type(i), ne(i), binary(C.bytes[i]), marks(i) === "in" ? "input" : marks(i) === "out" ? "output" : ""], selected);
    picture(i, selected);
    const p = el("p");
    if (split(i)) p.append(el("b", `badge ${look(i)}`, split(i)), " ");
    p.append(S[C.meaning[i]]);
    selected.append(p);
    if (C.note[i]) selected.append(el("p", "muted", S[C.note[i]]));
    const slices = D.slices[C.slices[i]];
    if (slices.length) {
      const t = el("table"), h = el("tr");
      [["device", ""], ["ne", ""], ["bytes", "right"], ...(i < N && !isView(i) ? [["computes", "right"]] : [])].forEach(([w, c]) => { const th = el("th", c, w); th.scope = "col"; h.append(th); });
      t.append(h);
      slices.forEach(([shape, bytes, computes], j) => {
        const tr = el("tr"), d = el("td");
        d.append(el("i", `swatch d${j % 16}`), DEVICES[j]);
        tr.append(d, el("td", "mono", S[shape]), el("td", "right", bytes.toLocaleString("en")));
        if (i < N && !isView(i)) tr.append(el("td", "right", computes ? "yes" : "no"));
        t.append(tr);
      });
      selected.append(t);
    }
    selected.append(el("h3", "", "Why"));
    const list = el("ul", "why");
    whyLines(i).forEach(([depth, text, number]) => {
      const line = el("li");
      line.style.marginLeft = `${Math.min(depth, 8) * 14}px`;
      // names are between backticks
      text.split("`").forEach((part, k) => line.append(k % 2 ? el("span", "mono", part) : part));
      if (number !== i) {
        const b = el("button", "go", "→");
        b.type = "button";
        b.dataset.go = number;
        b.title = b.ariaLabel = `Go to ${name(number)}`;
        line.append(b);
      }
      list.append(line);
    });
    selected.append(list);
    if (W.rules[i]) selected.append(el("p", "muted", `Rules: ${S[W.rules[i]]}`));
    if (i < N) {
      const sub = C.sub[i], [a, b] = D.subs[sub];
      facts([`node ${i}`, C.layer[i] >= 0 ? `layer ${C.layer[i]}` : "", `subgraph ${sub} (nodes ${a} to ${b - 1})`], selected);
      if (D.times) subTimes(sub, selected);
    } else if (C.layer[i] >= 0) facts([`layer ${C.layer[i]}`], selected);
    const x = D.reduces[i];
    if (x) {
      const b = el("button", "", `Σ all-reduce ${binary(x.bytes)} after it`);
      b.type = "button";
      b.dataset.sum = i;
      selected.append(b);
    }
    links("Reads", i < N ? [...new Set(C.src[i])] : [], selected);
    links("Is read by", users(i), selected);
  }
  function reduceDetails(i) {
    const x = D.reduces[i];
    selected.append(el("h2", "", `all-reduce after ${name(i)}`));
    selected.append(el("p", "", "All devices wait for each other here, and each gets the sum of what all of them have computed."));
    const t = el("table");
    x.facts.forEach(([k, v]) => { const tr = el("tr"), th = el("th", "", S[k]); th.scope = "row"; tr.append(th, el("td", "", S[v])); t.append(tr); });
    selected.append(t);
    if (D.times) subTimes(C.sub[i], selected);
    links("The sums arise in", x.origins, selected);
    links("What is summed", [i], selected);
    links("The sum is read by", users(i), selected);
  }

  // measured times
  const took = (times) => Math.max(...DEVICES.map((d, j) => (times[0][j] || 0) + (times[1][j] || 0) + (times[2][j] || 0)));
  function pieceTime(p, k) {
    // of all layers that it stands for: the subgraphs that end in them
    const layers = state.fold && p[0] >= 0 ? layersAlike(p) : [p[0]], pieces = p[0] < 0 ? [p] : layers.map((l) => D.pieces[byLayer.get(l)[ordinal[k]]]);
    let n = 0;
    pieces.forEach((x) => { for (let i = x[1]; i < x[2]; i++) if (D.times[C.sub[i]] && i === D.subs[C.sub[i]][1] - 1) n += took(D.times[C.sub[i]]); });
    return n ? ` · ${micro(n)} measured` : "";
  }
  function subTimes(sub, into) {
    const of = D.times[sub];
    if (!of) return;
    into.append(el("h3", "", `Measured: subgraph ${sub} and the sum behind it`));
    const t = el("table"), h = el("tr");
    [["device", ""], ["computes", "right"], ["waits", "right"], ["sums", "right"]].forEach(([w, c]) => { const th = el("th", c, w); th.scope = "col"; h.append(th); });
    t.append(h);
    DEVICES.forEach((d, j) => {
      const tr = el("tr"), first = el("td");
      first.append(el("i", `swatch d${j % 16}`), d);
      tr.append(first);
      of.forEach((x) => tr.append(el("td", "right", x[j] === null ? "-" : micro(x[j]))));
      t.append(tr);
    });
    into.append(t);
  }

  // what people do

  function setTab(tab) {
    state.tab = tab;
    if (tab === "graph") state.sort = null;
    for (const t of ["graph", "table"]) {
      $(`tab-${t}`).setAttribute("aria-selected", t === tab);
      $(`tab-${t}`).tabIndex = t === tab ? 0 : -1;
    }
    refresh(false);
  }
  function setDetail(detail, render = true) {
    state.detail = detail;
    state.open.clear();
    document.querySelectorAll("[data-detail]").forEach((b) => {
      b.setAttribute("aria-checked", b.dataset.detail === detail);
      b.tabIndex = b.dataset.detail === detail ? 0 : -1;
    });
    if (render) refresh(false);
  }
  function setFold(fold) {
    state.fold = $("fold").checked = fold;
    refresh(false);
  }
  function find() {
    const began = performance.now();
    state.words = search.value.toLowerCase().split(/\s+/).filter((w) => w);
    // when the search ends, what was chosen stays in sight
    refresh(state.words.length > 0);
    performance.clearMeasures("pyggml:search");
    performance.measure("pyggml:search", { start: began, end: performance.now() });
  }

  grid.addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(paint); } }, { passive: true });
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button"), e = event.target.closest(".row");
    if (button && button.dataset.column) {
      const k = Number(button.dataset.column);
      state.sort = !state.sort || state.sort[0] !== k ? [k, 1] : state.sort[1] > 0 ? [k, -1] : null;
      return refresh(true);
    }
    if (!e) return;
    state.cursor = Number(e.dataset.r);
    const row = rows[state.cursor];
    if (button && button.dataset.step) return stepLayer(row, Number(button.dataset.step));
    act(row);
  });
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = rows[state.cursor], page = Math.max(1, Math.floor(grid.clientHeight / H) - 2);
    const group = row && row.kind === "group";
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
    if (event.key in moves) moveTo(state.cursor + moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") act(row);
    else if (event.key === "ArrowRight" && group) { isOpen(row.key) ? moveTo(state.cursor + 1) : toggle(row.key, true); }
    else if (event.key === "ArrowLeft") {
      if (group && isOpen(row.key)) toggle(row.key, false);
      else { let r = state.cursor - 1; while (r > 0 && rows[r].kind !== "group") r--; if (r >= 0 && rows[r].kind === "group") moveTo(r); }
    } else if (event.key === "[" || event.key === "]") stepLayer(row, event.key === "[" ? -1 : 1);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    if (event.key === "Escape") {
      if (event.target === search || state.words.length) { search.value = ""; if (state.words.length) find(); grid.focus(); }
      else if (state.selected) { choose(null); grid.focus(); }
      else return;
      return event.preventDefault();
    }
    if (event.target.matches("input:not([type=checkbox])")) return;
    const keys = {
      "/": () => { search.focus(); search.select(); }, "?": () => $("keys").showModal(),
      g: () => setTab("graph"), t: () => setTab("table"), f: () => setFold(!state.fold),
      1: () => setDetail("layers"), 2: () => setDetail("nodes"), 3: () => setDetail("all"),
    };
    if (!(event.key in keys)) return;
    keys[event.key]();
    event.preventDefault();
  });
  // arrow keys inside of tabs and choices
  document.querySelectorAll("[role=tablist], [role=radiogroup]").forEach((set) => set.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], buttons = [...set.querySelectorAll("button")];
    if (!step) return;
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.click();
    next.focus();
    event.preventDefault();
  }));
  search.addEventListener("input", find);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    grid.focus();
    moveTo(0);
    if (event.key === "Enter") act(rows[0]);
    event.preventDefault();
  });
  $("tab-graph").addEventListener("click", () => setTab("graph"));
  $("tab-table").addEventListener("click", () => setTab("table"));
  document.querySelectorAll("[data-detail]").forEach((b) => b.addEventListener("click", () => setDetail(b.dataset.detail)));
  $("fold").addEventListener("change", () => setFold($("fold").checked));
  $("help").addEventListener("click", () => $("keys").showModal());
  details.addEventListener("click", (event) => {
    const b = event.target.closest("button");
    if (b && b.dataset.go) goTo(Number(b.dataset.go));
    if (b && b.dataset.sum) goTo(Number(b.dataset.sum), "reduce");
  });
  new ResizeObserver(() => { layout(); repaint(); }).observe(grid);

  // light, dark, or as the system has it
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  function setTheme(theme) {
    root.dataset.theme = theme;
    root.classList.toggle("dark", theme === "dark" || (theme === "system" && system.matches));
    $("theme").textContent = `Theme: ${theme}`;
    try { theme === "system" ? localStorage.removeItem("pyggml-theme") : localStorage.setItem("pyggml-theme", theme); } catch { /* a page of a file may not keep anything */ }
  }
  let kept = null;
  try { kept = localStorage.getItem("pyggml-theme"); } catch { /* as above */ }
  setTheme(kept === "dark" || kept === "light" ? kept : "system");
  system.addEventListener("change", () => setTheme(root.dataset.theme));
  $("theme").addEventListener("click", () => setTheme({ system: system.matches ? "light" : "dark", light: system.matches ? "dark" : "system", dark: system.matches ? "system" : "light" }[root.dataset.theme]));

  setDetail(D.detail, false);
  buildRows();
  layout();
  repaint();
  function fromAddress(hash) {
    const address = /^#(n|sum)(\d+)$/.exec(hash);
    if (address && Number(address[2]) < TOTAL) goTo(Number(address[2]), address[1] === "sum" && D.reduces[address[2]] ? "reduce" : "item");
  }
  // not what the address is by now: what was chosen before may have been written into it
  addEventListener("hashchange", (event) => fromAddress(new URL(event.newURL).hash));
  fromAddress(location.hash);
  performance.measure("pyggml:first", { start: 0, end: performance.now() });
})();
