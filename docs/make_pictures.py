"""Makes the pictures of docs/how-to-read-a-plan.md: what the code prints, as SVG, and the page in a browser, as PNG.

    python docs/make_pictures.py              # all; the screenshots want chromium and the package playwright
    python docs/make_pictures.py --check      # whether the SVGs are what the code prints now
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import pyggml as gg
from pyggml.model import ModelOptions, plan_model
from pyggml.plan import SplitPlan
from pyggml.testing import tiny_gguf
from pyggml.testing.header import llama_header

FOLDER = Path(__file__).parent / "pictures"
# rich's own has fonts from another host
FORMAT = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def header_plan(preset: str, device: str, shares: tuple[float, ...] | None = None) -> SplitPlan:
    """Of a model that is too large to keep around: its header is enough."""
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        path = llama_header(Path(folder) / "model.gguf", preset, vocab="none")
        return plan_model(path, device, n_tokens=1, options=ModelOptions("tensor", n_ctx=8192, tensor_split=shares))


def uneven() -> SplitPlan:
    """Llama 8B, three quarters on the first of two devices."""
    return header_plan("llama-8b", "sim:2", (3, 1))


def pictures() -> dict[str, tuple[str, int, Callable[[Console], object]]]:
    """Title, columns and what prints it, by file."""
    plan, experts = uneven(), header_plan("mixtral-8x7b", "sim:3")

    def table(console: Console) -> None:
        plan.render(console)

    def explain(console: Console) -> None:
        console.print(Text('>>> print(plan.explain("ffn_out-0"))', style="dim"))
        console.print(Text(str(plan.explain("ffn_out-0"))))

    def delayed(console: Console) -> None:
        lines = [line for line in experts.table().splitlines() if re.match(r"ffn_moe_(down|out|weighted)-0|── all-reduce .*ffn_moe_out-0|node  |ffn_inp-0", line)]
        for line in lines:
            console.print(Text(line, style="yellow" if line.startswith("──") else ""))

    return {
        "table.svg": ("plan.render()", 126, table),
        "layers.svg": ('plan.render(detail="layers")', 110, lambda console: console.print(Text(plan.table("layers")))),
        "memory.svg": ("plan.memory_bars()", 108, lambda console: plan.memory_bars().print(console)),
        "slices.svg": ('plan.picture("blk.0.ffn_up.weight")', 84, lambda console: plan.picture("blk.0.ffn_up.weight").print(console)),
        "explain.svg": ('plan.explain("ffn_out-0")', 110, explain),
        "delayed.svg": ("a delayed all-reduce", 150, delayed),
    }


def drawn(name: str, title: str, columns: int, show: Callable[[Console], object]) -> str:
    """The SVG."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False)
    show(console)
    return console.export_svg(title=title, code_format=FORMAT, unique_id=f"pyggml-{name.partition('.')[0]}")


def screenshots() -> None:
    """The page, in a browser."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])

        def shot(name: str, plan: SplitPlan, title: str, theme: str, then: Callable[[Any], None], **options: Any) -> None:
            path = Path(folder) / f"{name}.html"
            plan.to_html(path, title=title, **options)
            page = browser.new_page(viewport={"width": 1200, "height": 700}, color_scheme=theme)
            page.goto(path.as_uri())
            then(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(100)
            page.screenshot(path=FOLDER / f"{name}.png")
            page.close()

        shot("page", uneven(), "Llama 8B over two devices, 3:1", "light", lambda page: page.locator(".row", has_text="ffn_up-0").first.click())

        experts = header_plan("mixtral-8x7b", "sim:3")
        delayed = next(r for r in experts.allreduces if r.delayed)
        shot("page-dark", experts, "Mixtral 8x7B over three devices", "dark", lambda page: page.evaluate(f"location.hash = '#sum{delayed.after}'"))
        with gg.Model(tiny_gguf(Path(folder) / "tiny.gguf", "llama"), "vcpu:2", split_mode="tensor", n_ctx=256) as model:
            model.logits([1, 2, 3])
            with gg.trace() as trace:
                for token in range(20):
                    model.logits([token])
            shot("page-measured", model.plan(n_tokens=1), "A tiny llama, traced", "light", lambda page: None, trace=trace)
        browser.close()


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true", help="write nothing; say which SVGs are not what is printed now")
    args.add_argument("--no-page", action="store_true", help="no screenshots")
    given = args.parse_args()
    FOLDER.mkdir(exist_ok=True)
    stale = []
    for name, (title, columns, show) in pictures().items():
        text, path = drawn(name, title, columns, show), FOLDER / name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
        if not given.check:
            path.write_text(text, encoding="utf-8")
    if given.check:
        sys.exit(f"stale: {', '.join(stale)}; run python docs/make_pictures.py" if stale else 0)
    if not given.no_page:
        screenshots()


if __name__ == "__main__":
    main()
