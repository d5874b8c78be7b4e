"""The page of a plan (`SplitPlan.to_html`), in headless Chromium: Debian's package, driven through Playwright."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml.errors import ArgumentError
from pyggml.plan import PlanNode, SplitPlan
from pyggml.plan.explain import Explainer
from pyggml.report.content import Content
from pyggml.report.plan_rows import Row, rows
from pyggml.testing import TinyModel

Make = Callable[..., TinyModel]
PATIENCE = 120_000  # milliseconds: machines that do much else besides
SIZES = {"desktop": (1440, 900), "tablet": (1024, 760), "phone": (400, 800)}
NASTY = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked=3'>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "\"quotes\" & 'more' &amp; `ticks` \\",
    "a\u2028b \u202ereversed \x02 \x01",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = ""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed (pip install pyggml[browser])"
    if chromium is None:
        reason = "chromium is not installed (apt-get install chromium)"
    if reason:
        assert not os.environ.get("PYGGML_TEST_REQUIRE_BROWSER"), reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # a container's root has no sandbox, and a small /dev/shm
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], timeout=PATIENCE)
        yield found
        found.close()


class Opened:
    """A page in the browser; all that it asks for and says is kept."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int] = SIZES["desktop"], theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.url = path.as_uri()
        self.page.goto(self.url)

    def close(self) -> None:
        assert self.said == []
        assert {a.partition("#")[0] for a in self.asked} == {self.url}, "the page asked for something else than itself"
        assert self.page.evaluate("window.hacked") is None
        self.context.close()

    def all_rows(self) -> list[dict[str, Any]]:
        """Every row from top to bottom: they are made only where one looks."""
        return self.page.evaluate(
            """async () => {
              const grid = document.getElementById("grid"), found = new Map();
              grid.scrollTop = 0;
              for (;;) {
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                document.querySelectorAll(".row").forEach((e) => found.set(Number(e.dataset.r), {
                  kind: [...e.classList].find((c) => c !== "row" && c !== "cursor" && c !== "source" && c !== "user"),
                  cells: [...e.children].map((c) => c.querySelector(":scope > .track") ? c.firstChild.textContent : c.textContent),
                  name: e.querySelector(".name")?.title,
                }));
                if (grid.scrollTop + grid.clientHeight >= grid.scrollHeight - 1) break;
                grid.scrollTop += grid.clientHeight - 60;
              }
              grid.scrollTop = 0;
              return [...found].sort((a, b) => a[0] - b[0]).map((x) => x[1]);
            }"""
        )

    def cursor(self) -> str:
        """The row that has the cursor, by what it shows first."""
        return str(self.page.evaluate("(document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant'))?.innerText ?? '').split('\\n')[0]"))

    def why(self) -> list[str]:
        return [t.removesuffix("→") for t in self.page.locator("#selected .why li").all_text_contents()]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    pages: list[Opened] = []

    def open_(plan: SplitPlan, *, size: str = "desktop", theme: str = "light", **options: Any) -> Opened:
        path = tmp_path / f"plan{len(pages)}.html"
        text = plan.to_html(path, **options)
        assert path.read_text("utf-8") == text
        pages.append(Opened(browser, path, SIZES[size], theme))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def plans(tiny: Make) -> Callable[[str], SplitPlan]:
    made: dict[str, SplitPlan] = {}

    def plan(name: str) -> SplitPlan:
        if name not in made:
            arch, _, device = name.partition(" on ")
            with gg.Model(tiny(arch), device or "sim:2", split_mode="tensor", n_ctx=256) as model:
                made[name] = model.plan(n_tokens=1)
        return made[name]

    return plan


def large(n_layer: int = 1250, n_devices: int = 3) -> SplitPlan:
    """Eight nodes a layer."""
    n, f = 32, 96
    weights = {}
    for k in range(n_layer):
        weights[f"blk.{k}.norm"] = np.zeros(n, np.float32)
        weights[f"blk.{k}.ffn_up"] = weights[f"blk.{k}.ffn_gate"] = np.zeros((f, n), np.float32)
        weights[f"blk.{k}.ffn_down"] = np.zeros((n, f), np.float32)
    rules = [gg.rule("ffn_up|ffn_gate", "S1"), gg.rule("ffn_down", "S0")]
    with gg.MetaDevice(gg.simulated("SIM", n=n_devices), rules=rules) as meta, gg.Weights(meta, weights) as w, gg.Graph(meta, size=9 * n_layer + 100) as g:
        x = g.input("x", ne=(n, 4))
        for k in range(n_layer):
            h = x.rms_norm(1e-5) * w[f"blk.{k}.norm"]
            up = (w[f"blk.{k}.ffn_gate"] @ h).silu() * (w[f"blk.{k}.ffn_up"] @ h)
            x = (x + w[f"blk.{k}.ffn_down"] @ up).rename(f"l_out-{k}")
        g.output("y", x)
        return g.plan()


# what is shown


def in_lanes(row: Row) -> bool:
    return row.kind in ("node", "view", "leaf")


@pytest.mark.parametrize("name", ["qwen35 on sim:3", "llama-moe on sim:2"])
def test_the_page_shows_the_rows_of_the_table(name: str, plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans(name)
    page = opened(plan)
    for fold in (True, False):
        page.page.keyboard.press("f") if not fold else None
        for key, detail in (("2", "nodes"), ("3", "all")):
            expected = [r for r in rows(plan, detail, fold) if in_lanes(r)]  # type: ignore[arg-type]
            page.page.keyboard.press(key)
            page.page.keyboard.press("t")
            found = [r for r in page.all_rows() if r["kind"] != "group"]
            number, title, op, type_, ne, split, per, _, subgraph, reduced = zip(*(r["cells"] for r in found), strict=True)
            marked = [t.replace(" (in)", "in").replace(" (out)", "out") for t in (r.cells[0] for r in expected)]
            assert list(title) == marked
            assert list(zip(op, type_, ne, split, per, subgraph, reduced, strict=True)) == [r.cells[1:] for r in expected]
            assert [n for n in number if n] == [str(r.number) for r in expected if r.number is not None and r.number < len(plan.nodes)]
            page.page.keyboard.press("g")
            lanes = page.all_rows()
            assert [r["name"] for r in lanes if r["kind"] in ("node", "view", "leaf")] == [r.cells[0].removesuffix(" (out)").removesuffix(" (in)") for r in expected]
            reduces = [r for r in lanes if r["kind"] == "reduce"]
            assert len(reduces) == sum(r.kind == "reduce" for r in rows(plan, detail, fold))  # type: ignore[arg-type]
            # a lane for each device, with its shape
            items = [r["cells"][-len(plan.devices) :] for r in lanes if r["kind"] in ("node", "view", "leaf")]
            held = [list(Content(plan).items[r.number].held) or ["-"] * len(plan.devices) for r in expected if r.number is not None]
            assert items == held


def test_layers_one_by_one(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("qwen35 on sim:2")
    page = opened(plan)
    page.page.keyboard.press("1")
    terse = rows(plan, "layers", True)
    found = page.all_rows()
    assert len(found) == len(terse) and {r["kind"] for r in found} == {"group"}
    for shown, row in zip(found, terse, strict=True):
        assert shown["cells"][0].startswith(row.cells[0])
        assert f"{row.cells[2]} node" in shown["cells"][0]
    page.page.keyboard.press("f")
    assert len(page.all_rows()) == len(rows(plan, "layers", False)) > len(terse)


def said(explanation: Any) -> list[str]:
    """The lines of an explanation without rules and note, which the page shows apart."""
    return [line.strip().replace("`", "") for line in str(explanation).splitlines()[: len(list(explanation.lines()))]]


def test_slices_and_explanation_of_every_node(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("qwen35 on sim:3")
    page = opened(plan)
    # as links do; what each shows is collected in the page, one call for all
    shown = page.page.evaluate(
        """async (n) => {
          const found = [];
          for (let i = 0; i < n; i += 2) {
            const link = document.createElement("button");
            link.dataset.go = i;
            document.getElementById("details").append(link);
            link.click();
            link.remove();
            const cursor = document.getElementById(document.getElementById("grid").getAttribute("aria-activedescendant"));
            found.push({
              name: document.querySelector("#selected h2").textContent,
              why: [...document.querySelectorAll("#selected .why li")].map((e) => e.textContent.replace(/→$/, "")),
              slices: [...document.querySelectorAll("#selected table:first-of-type tr")].slice(1).map((e) => [...e.children].map((c) => c.textContent)),
              cursor: cursor.querySelector(".name").title,
            });
          }
          return found;
        }""",
        len(plan.nodes) + len(plan.leafs),
    )
    explainer = Explainer(plan)
    for item, seen in zip(Content(plan).items[::2], shown, strict=True):
        x = item.tensor
        assert seen["name"] == seen["cursor"] == item.name
        assert seen["why"] == said(explainer.explain(item.number))
        slices = seen["slices"] if x.slices else []
        assert [line[0] for line in slices] == list(plan.devices if x.slices else ())
        assert [line[2] for line in slices] == [f"{s.bytes:,}" for s in x.slices]
        if isinstance(x, PlanNode) and not x.is_view and x.slices:
            assert [line[3] for line in slices] == ["yes" if s.compute else "no" for s in x.slices]


def test_rules_are_named(opened: Callable[..., Opened]) -> None:
    plan = large(2, 2)
    page = opened(plan)
    page.page.locator(".row", has_text="l_out-0").click()
    page.page.get_by_role("button", name="MUL_MAT P").click()
    assert "your rule 2 ('ffn_down': S0)" in page.page.inner_text("#selected")
    assert page.why() == said(plan.explain(plan["l_out-0"].sources[1]))  # type: ignore[union-attr]


# what people do


def test_search(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("llama on sim:2")
    page = opened(plan)
    total = len(plan.nodes) + len(plan.leafs)
    page.page.keyboard.press("/")
    page.page.keyboard.type("FFN_down weight")
    named = [x.name for x in plan.leafs if "ffn_down" in x.name]
    assert [r["name"] for r in page.all_rows()] == named
    assert page.page.inner_text("#count") == f"{len(named)} of {total}"
    assert set(page.page.locator("mark").all_text_contents()) == {"ffn_down", "weight"}
    # in layers that folding hides, too, and by what something is
    page.page.fill("#search", "flash_attn")
    assert len(page.all_rows()) == sum(x.op == "FLASH_ATTN_EXT" for x in plan.nodes) == 2
    page.page.fill("#search", "s2 permute")
    assert len(page.all_rows()) == sum(x.op == "PERMUTE" and str(x.split).startswith("S2") for x in plan.nodes) > 0
    page.page.fill("#search", "no such thing")
    assert page.all_rows() == [] and "Nothing is called that" in page.page.inner_text("#rows")
    page.page.keyboard.press("Escape")
    assert page.page.input_value("#search") == "" and len(page.all_rows()) > 20
    page.page.keyboard.press("/")
    page.page.keyboard.type("result_norm")
    page.page.keyboard.press("Enter")
    assert page.page.inner_text("#selected h2") == "result_norm"
    assert page.page.evaluate("document.activeElement.id") == "grid"
    page.page.keyboard.press("Escape")
    assert page.cursor().startswith("result_norm") and page.page.locator(".row.cursor").is_visible()


def test_folding_and_equal_layers(opened: Callable[..., Opened]) -> None:
    plan = large(6, 2)
    page = opened(plan)
    grid = page.page.locator("#grid")
    group = page.page.locator(".row.group", has_text="layers 0-4")
    assert "5 x" in group.inner_text() and group.get_attribute("aria-expanded") == "true"
    n_rows = len(page.all_rows())
    group.click()
    assert page.page.locator(".row.group", has_text="layers 0-4").get_attribute("aria-expanded") == "false"
    assert len(page.all_rows()) == n_rows - 9
    group.click()
    # another of the five
    assert page.page.locator(".row", has_text="l_out-0").count() == 1
    group.get_by_role("button", name="Show the next of these layers").click()
    assert page.page.locator(".row", has_text="l_out-1").count() == 1 and page.page.locator(".row", has_text="l_out-0").count() == 0
    grid.focus()
    page.page.keyboard.press("[")
    page.page.keyboard.press("[")
    assert page.page.locator(".row", has_text="l_out-4").count() == 1
    # one that is hidden is shown when someone goes to it
    page.page.fill("#search", "l_out-3")
    page.page.locator(".row", has_text="l_out-3").click()
    page.page.locator("#selected .links button").first.click()
    assert page.page.locator(".row.group", has_text="shown: ").inner_text().count("shown: 2") + page.page.locator(".row.group", has_text="shown: ").inner_text().count("shown: 3") == 1
    page.page.uncheck("#fold")
    assert len(page.all_rows()) == sum(1 for _ in rows(plan, "nodes", False) if _.kind != "group") + len(rows(plan, "layers", False))


def test_layers_that_differ_in_their_weights_alone(opened: Callable[..., Opened]) -> None:
    plan = large(8, 2)
    odd = {f"blk.{k}.ffn_up" for k in (2, 3, 5)}
    plan = replace(plan, leafs=tuple(replace(x, type="q8_0") if x.name in odd else x for x in plan.leafs))
    page = opened(plan)
    # nodes are alike in all of them; another one is shown
    page.page.locator("#grid").focus()
    page.page.locator(".row", has_text="l_out-0").click()
    page.page.keyboard.press("]")
    page.page.keyboard.press("]")
    assert page.page.locator(".row", has_text="l_out-2").count() == 1
    # with their weights they are two kinds: each is there
    page.page.keyboard.press("3")
    groups = [r["cells"][0] for r in page.all_rows() if r["kind"] == "group" and "shown: " in r["cells"][0]]
    assert [g.split(" x")[0] for g in groups] == ["layers 0, 1, 4, 64", "layers 2, 3, 53"]
    assert [r["name"] for r in page.all_rows() if r["kind"] in ("node", "view", "leaf")] == [r.cells[0].removesuffix(" (out)") for r in rows(plan, "all", True) if in_lanes(r)]


def test_a_click_on_a_node_and_on_an_all_reduce(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("llama on sim:2")
    page = opened(plan)
    assert page.page.is_visible("#overview")
    page.page.locator(".row", has_text="attn_out-0").click()
    text = page.page.inner_text("#selected")
    assert "Partial: every device has a summand" in text and "512" in text
    assert not page.page.is_visible("#overview")
    assert page.page.locator(".row.source").count() >= 1
    page.page.get_by_role("button", name="all-reduce 512 B after it").click()
    assert page.page.inner_text("#selected h2") == "all-reduce after attn_out-0"
    assert plan.allreduces[0].how in page.page.inner_text("#selected")
    page.page.locator("#selected [data-go]").first.click()
    assert page.page.inner_text("#selected h2") == "attn_out-0"
    page.page.get_by_role("button", name="Close").click()
    assert page.page.is_visible("#overview") and page.page.inner_text("#selected") == ""


def test_keyboard(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("llama on sim:2")
    page = opened(plan)
    key = page.page.keyboard.press
    order = []
    for _ in range(9):
        key("Tab")
        order.append(page.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert order[:8] == ["Skip to the nodes", "theme", "help", "tab-graph", "search", "Nodes", "fold", "grid"]
    page.page.locator("#grid").focus()
    assert page.cursor().startswith("layer 0")
    key("ArrowDown")
    assert page.cursor() == "norm-0"
    key("Enter")
    assert page.page.inner_text("#selected h2") == "norm-0"
    key("ArrowDown")
    # open details follow the cursor
    assert page.page.inner_text("#selected h2") == "attn_norm-0"
    key("ArrowLeft")
    key("ArrowLeft")
    assert page.page.locator(".row.group").first.get_attribute("aria-expanded") == "false"
    key("ArrowRight")
    assert page.page.locator(".row.group").first.get_attribute("aria-expanded") == "true"
    key("End")
    assert page.cursor().startswith("result_output")
    last = page.page.locator(".row.cursor")
    box, grid = last.bounding_box(), page.page.locator("#grid").bounding_box()
    assert box and grid and grid["y"] <= box["y"] and box["y"] + box["height"] <= grid["y"] + grid["height"] + 1
    key("Home")
    assert page.cursor().startswith("layer 0")
    key("Escape")
    assert page.page.is_visible("#overview")
    key("t")
    assert page.page.get_attribute("#tab-table", "aria-selected") == "true"
    key("?")
    assert page.page.evaluate("document.getElementById('keys').open")
    key("Escape")
    assert not page.page.evaluate("document.getElementById('keys').open")
    page.page.focus("#tab-table")
    key("ArrowRight")
    assert page.page.get_attribute("#tab-graph", "aria-selected") == "true" and page.page.evaluate("document.activeElement.id") == "tab-graph"
    # what assistive technology is told exists
    page.page.locator("#grid").focus()
    for _ in range(40):
        key("ArrowDown")
        assert page.page.evaluate("!!document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant'))")


def test_sorting(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    plan = plans("llama on sim:2")
    page = opened(plan)
    page.page.keyboard.press("t")
    computed = [x for x in plan.nodes if not x.is_view]
    button = page.page.locator("#heads button", has_text="bytes")
    button.click()
    cells = page.all_rows()
    assert len(cells) == len(computed)
    assert page.page.locator("[aria-sort=ascending]").count() == 1
    button.click()
    first = page.all_rows()[0]["name"]
    assert plan[first].bytes == max(x.bytes for x in computed)
    button.click()
    assert page.page.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 0


# how it looks

_CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith("color(srgb") ? [m[0] * 255, m[1] * 255, m[2] * 255, m[3] ?? 1] : [...m.slice(0, 3), m[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((k) => a[k] * a[3] + b[k] * (1 - a[3])).concat(1);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { const all = []; for (; e; e = e.parentElement) all.push(parse(getComputedStyle(e).backgroundColor)); return all.reverse().reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
  const bad = [];
  let n = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest("script, style, .skip, dialog, noscript")) continue;
    const ground = behind(e), ink = over(parse(getComputedStyle(e).color), ground), [a, b] = [light(ink), light(ground)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    n++;
    if (ratio < 4.5) bad.push([ratio.toFixed(2), e.className, walk.currentNode.textContent.trim().slice(0, 30)].join(" "));
  }
  return [n, bad];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_themes_sizes_and_contrast(size: str, theme: str, plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    page = opened(plans("llama-moe on sim:2"), size=size, theme=theme)
    width, _ = SIZES[size]
    for key in ("g", "t", "1", "3"):
        page.page.keyboard.press(key)
        n, bad = page.page.evaluate(_CONTRAST)
        assert n > 60 and bad == []
        # the page itself never scrolls sideways; the grid may
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.keyboard.press("g")
    page.page.keyboard.press("2")
    page.page.locator(".row.reduce").first.click()
    assert page.page.evaluate(_CONTRAST)[1] == []
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, ground[4:-1].split(","))) < 3 * 128
    assert dark == (theme == "dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(theme: str, plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    """Roles, names, labels, contrast, focus: the rules of axe-core."""
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError as error:
        assert not os.environ.get("PYGGML_TEST_REQUIRE_BROWSER"), error
        pytest.skip("axe-playwright-python is not installed (pip install pyggml[browser])")
    page = opened(plans("llama-moe on sim:2"), theme=theme)
    page.page.evaluate(AXE_SCRIPT)
    for key in ("2", "t", "1", "?"):
        page.page.keyboard.press(key)
        if key == "2":
            page.page.locator(".row.reduce").first.click()
        found = page.page.evaluate("axe.run()")
        assert len(found["passes"]) > 15
        assert [(v["id"], v["help"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_the_theme_can_be_chosen_and_is_kept(plans: Callable[[str], SplitPlan], opened: Callable[..., Opened]) -> None:
    page = opened(plans("llama on sim:2"), theme="dark")
    is_dark = "document.documentElement.classList.contains('dark')"
    assert page.page.evaluate(is_dark)
    page.page.click("#theme")
    assert page.page.inner_text("#theme") == "Theme: light" and not page.page.evaluate(is_dark)
    page.page.reload()
    assert page.page.inner_text("#theme") == "Theme: light" and not page.page.evaluate(is_dark)
    page.page.click("#theme")
    assert page.page.evaluate(is_dark) or page.page.inner_text("#theme") == "Theme: dark"
    for _ in range(3):
        if page.page.inner_text("#theme") == "Theme: system":
            break
        page.page.click("#theme")
    assert page.page.inner_text("#theme") == "Theme: system" and page.page.evaluate(is_dark)
    page.page.emulate_media(color_scheme="light")
    # the page is told of it, a little later
    page.page.evaluate(f"async () => {{ for (let k = 0; k < 200 && {is_dark}; k++) await new Promise(requestAnimationFrame); }}")
    assert not page.page.evaluate(is_dark)


def test_devices_differ_without_colour(opened: Callable[..., Opened]) -> None:
    page = opened(large(1, 8))
    patterns = page.page.evaluate("[...document.querySelectorAll('.memory .swatch')].map((e) => getComputedStyle(e).backgroundImage)")
    assert len(patterns) == len(set(patterns)) == 8
    assert page.page.locator("#heads .lane").all_inner_texts() == [f"SIM{j}" for j in range(8)]


def test_names_are_text(opened: Callable[..., Opened]) -> None:
    plan = large(1, 2)
    nodes = [replace(x, name=NASTY[k % len(NASTY)], label="") for k, x in enumerate(plan.nodes)]
    leafs = [replace(x, name=NASTY[k % len(NASTY)] + " weight", label="") for k, x in enumerate(plan.leafs)]
    devices = ("</script><b>0", "<i>1</i>")
    plan = replace(plan, nodes=tuple(nodes), leafs=tuple(leafs), devices=devices, memory=tuple(replace(m, name=d) for m, d in zip(plan.memory, devices, strict=True)))
    page = opened(plan, title="</title><script>window.hacked = 4</script>")
    assert page.page.title() == "</title><script>window.hacked = 4</script>"
    assert page.page.inner_text("h1") == "</title><script>window.hacked = 4</script>"
    page.page.keyboard.press("3")
    assert {r["name"] for r in page.all_rows() if r["name"]} == {x.name for x in (*nodes, *leafs)}
    for k in range(len(nodes)):
        # by address
        shown = "async (k) => { const done = new Promise((d) => addEventListener('hashchange', d, { once: true })); location.hash = `n${k}`; await done; return document.querySelector('#selected h2').textContent; }"
        assert page.page.evaluate(shown, k) == nodes[k].name
    assert page.page.locator("#rows script, #rows img, #selected script, #selected img, .memory b b, .memory i i").count() == 0
    assert page.page.evaluate("document.scripts.length") == 2


def test_ten_thousand_nodes(opened: Callable[..., Opened]) -> None:
    plan = large()
    assert len(plan.nodes) == 10_000
    page = opened(plan)
    page.page.keyboard.press("f")
    page.page.keyboard.press("3")
    grid = page.page.locator("#grid")
    assert int(grid.get_attribute("aria-rowcount") or 0) > 16_000
    # rows are made only where one looks
    assert page.page.locator(".row").count() < 80
    grid.focus()
    page.page.keyboard.press("End")
    assert page.cursor().startswith("y")
    assert page.page.locator(".row").count() < 80
    page.page.fill("#search", "l_out-1234")
    assert page.page.inner_text("#count") == "1 of 15,001"
    page.page.fill("#search", "mul_mat")
    assert page.page.inner_text("#count") == "3,750 of 15,001"
    page.page.keyboard.press("Enter")
    assert "Why" in page.page.inner_text("#selected")


# measured times


def test_measured_times(tiny: Make, opened: Callable[..., Opened]) -> None:
    with gg.Model(tiny("llama"), "vcpu:2", split_mode="tensor", n_ctx=256) as model:
        plan, other = model.plan(n_tokens=1, n_past=3), model.plan(n_tokens=3)
        model.logits([1, 2, 3])
        with gg.trace() as trace:
            model.logits([4])
    times = trace.times_by_subgraph(plan)
    page = opened(plan, trace=trace)
    content = Content(plan, trace)
    assert content.n_runs == 1
    assert content.measured is not None and len(content.measured) == len(plan.subgraphs)
    at = [[d.name for d in trace.devices].index(d) for d in plan.devices]
    for measured, of in zip(content.measured, times, strict=True):
        assert measured is not None
        assert measured.compute == tuple(of.compute[j] / 1000 for j in at)  # type: ignore[operator]
    assert page.page.locator("#overview h2").all_inner_texts() == ["Measured: mean of 1 run", "How to read this"]
    shown = [r for r in page.all_rows() if r["kind"] == "time"]
    assert [r["cells"][1] for r in shown] == [f"measured: subgraph {k}" for k in range(len(plan.subgraphs))]
    for row, measured in zip(shown, content.measured, strict=True):
        for text, us in zip(row["cells"][-2:], measured.compute, strict=True):  # type: ignore[union-attr]
            value, unit = text.split()
            assert float(value) * {"µs": 1, "ms": 1000}[unit] == pytest.approx(us, rel=0.01, abs=0.1)
    page.page.locator(".row.reduce").first.click()
    assert "Measured: subgraph 0 and the sum behind it" in page.page.inner_text("#selected")
    with pytest.raises(ArgumentError, match="no run of the trace is the planned one"):
        other.to_html(trace=trace)
    with pytest.raises(ArgumentError, match="the trace has no device SIM0 and SIM1"):
        large(1, 2).to_html(trace=trace)


def test_the_benchmark_measures_a_little(browser: Any) -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "page_speed.py"
    done = subprocess.run([sys.executable, program, "--rounds", "1", "--layers", "3", "--devices", "sim:2", "--json"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 5 and all(row["value"] > 0 for row in rows)
