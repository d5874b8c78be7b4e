"""The page of a plan of 10,000 nodes in headless Chromium: first paint, a search, and folding, in milliseconds.

Times are from the browser's clock: to the first paint from the beginning of the navigation; of a search from the key that
changes its words to the frame that shows what was found. Left out without chromium or the package playwright.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _bench import LEFT_OUT, Row, parser, seconds, show

# from a key to the frame after it
_FRAME = """async (words) => {
  const search = document.getElementById("search"), taken = [];
  for (const word of words) {
    const begun = performance.now();
    search.value = word;
    search.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push(performance.now() - begun);
  }
  return taken;
}"""
_KEY = """async (key) => {
  const begun = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begun;
}"""
# not Playwright's own waiting, which the page's content security policy forbids
_PAINTED = """async () => {
  while (!performance.getEntriesByName("first-contentful-paint").length || !performance.getEntriesByName("pyggml:first").length)
    await new Promise((done) => requestAnimationFrame(done));
}"""
_WORDS = ("f", "ff", "ffn", "ffn_m", "ffn_moe_up", "ffn_moe_up-17", "", "s1 mul_mat", "weight q", "")


def measure(rounds: int, n_layer: int, devices: str) -> list[Row]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed: pip install playwright", file=sys.stderr)
        sys.exit(LEFT_OUT)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("chromium is not installed", file=sys.stderr)
        sys.exit(LEFT_OUT)
    import pyggml as gg
    from pyggml.testing import tiny_gguf

    paint: list[float] = []
    search: list[float] = []
    fold: list[float] = []
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder, sync_playwright() as playwright:
        tiny_gguf(Path(folder) / "many.gguf", "llama", moe=True, n_layer=n_layer, n_embd=64, n_ff=64, n_head=4, n_head_kv=4, n_vocab=64)
        plan = gg.plan_model(Path(folder) / "many.gguf", devices)
        path = Path(folder) / "plan.html"
        made = [seconds(lambda: plan.to_html(path)) for _ in range(min(rounds, 3))]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(path.as_uri())
            page.evaluate(_PAINTED)
            # everything there is by then: lines, lanes, memory
            paint.append(max(_of(page, "startTime", "first-contentful-paint"), _of(page, "duration", "pyggml:first")))
            search += page.evaluate(_FRAME, list(_WORDS))
            fold += [page.evaluate(_KEY, "f"), page.evaluate(_KEY, "f")]
            page.close()
        browser.close()
        size = path.stat().st_size / 2**20
    what = f"page of {len(plan.nodes):,} nodes"
    return [
        Row(f"{what}: first paint, complete", f"{statistics.median(paint):.0f} ms", "-", statistics.median(paint), unit="ms", spread=_middle(paint)),
        Row(f"{what}: a search, from key to frame", f"{statistics.median(search):.0f} ms", "-", statistics.median(search), unit="ms", spread=_middle(search)),
        Row(f"{what}: ... the slowest", f"{max(search):.0f} ms", "-", max(search), unit="ms"),
        Row(f"{what}: unfold and fold all layers", f"{statistics.median(fold):.0f} ms", "-", statistics.median(fold), unit="ms", spread=_middle(fold)),
        Row(f"{what}: made ({size:.1f} MiB)", f"{statistics.median(made):.2f} s", "-", statistics.median(made), unit="s"),
    ]


def _of(page: Any, key: str, name: str) -> float:
    return float(page.evaluate(f"performance.getEntriesByName({name!r})[0].{key}"))


def _middle(taken: list[float]) -> str:
    single = sorted(taken)
    return f"{single[len(single) // 4]:.0f} to {single[-1 - len(single) // 4]:.0f}"


def main() -> None:
    args = parser(__doc__, rounds=7)
    args.add_argument("--layers", type=int, default=213, help="layers of the model (default: 213, which make 10,000 nodes)")
    args.add_argument("--devices", default="sim:4", help="default: sim:4")
    options = args.parse_args()
    show(measure(options.rounds, options.layers, options.devices), options.json)


if __name__ == "__main__":
    main()
