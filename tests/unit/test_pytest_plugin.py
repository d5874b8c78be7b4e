"""What pytest says, with pyggml's plugin, of assertions about plans and comparisons; and what it costs those who have none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyggml as gg
from pyggml.plan import SplitPlan
from pyggml.testing import PlanMismatch, assert_plan
from pyggml.testing.plans import write_plan

ROOT = Path(__file__).parents[2]

# an installed pyggml brings the plugin itself
PLUGIN = ("-p", "no:pyggml", "-p", "pyggml.testing.pytest_plugin", "-p", "no:cacheprovider")
# a warning is a failure, but for pytest's about the hook of an editable install (see pyproject.toml)
STRICT = ("-W", "error", "-W", "ignore:Module already imported so cannot be rewritten; _:pytest.PytestAssertRewriteWarning")

MAKE = """
    import dataclasses

    import numpy as np
    import pytest

    import pyggml as gg
    from pyggml.testing import assert_plan


    @pytest.fixture(scope="module")
    def graph():
        rng = np.random.default_rng(0)
        meta = gg.MetaDevice("vcpu:2", [("up", "S1"), ("down", "S0")])
        w = gg.Weights(meta, {"up": rng.standard_normal((256, 64)).astype("f4"), "down": rng.standard_normal((64, 256)).astype("f4")})
        with gg.Graph(meta) as g:
            g.output("y", gg.ops.rms_norm(w["down"] @ gg.ops.silu(w["up"] @ g.input("x", (64, 3)))))
            yield g
"""


WITHOUT_SITE = f"import sys; sys.path[1:1] = {[str(Path(pytest.__file__).parents[1])]!r}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def pytest_says(
    folder: Path, source: str, *options: str, plugin: tuple[str, ...] = PLUGIN, python: tuple[str, ...] = ("-m", "pytest")
) -> subprocess.CompletedProcess[str]:
    text = "\n".join(line.removeprefix("    ") for line in source.splitlines())
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    command = [sys.executable, *python, *STRICT, "--rootdir", str(folder), *plugin, *options, "test_it.py"]
    # the package may be found by the working directory, which is another one there
    home = str(Path(gg.__file__).parents[1])
    paths = [home] if home in map(os.path.abspath, sys.path) else []
    paths += [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


def failures(output: str) -> dict[str, str]:
    """What was said about each test."""
    parts = re.split(r"\n_{3,} (\w+) _{3,}\n", output)
    return dict(zip(parts[1::2], parts[2::2]))


FAILING = """
    def test_ok(graph):
        assert gg.compare(graph, on=gg.cpu(), tolerance=0).ok

    def test_named(graph):
        found = gg.compare(graph, on=gg.cpu(), tolerance=0)
        fine = gg.compare(graph, on=gg.cpu())
        assert found.ok, "they differ"

    def test_all(graph):
        several = [gg.compare(graph, on=gg.cpu()), gg.compare(graph, on=gg.cpu(), tolerance=0)]
        assert all(c.ok for c in several)

    def test_helper(graph):
        def check(c):
            assert c.ok
        check(gg.compare(graph, on=gg.cpu(), tolerance=0))

    def test_plans(graph):
        plan = graph.plan()
        leafs = tuple(dataclasses.replace(x, split=gg.SplitState("M")) if x.name == "up" else x for x in plan.leafs)
        assert plan == dataclasses.replace(plan, leafs=leafs)

    def test_diff(graph):
        plan = graph.plan()
        assert not plan.diff(dataclasses.replace(plan, devices=("A", "B")))

    def test_legal():
        meta = gg.MetaDevice("sim:2", [("up", "S0")])
        with gg.Graph(meta) as g:
            w = gg.Weights(meta, {"up": np.zeros((256, 64), "f4")})
            g.output("y", w["up"] @ gg.ops.silu(g.input("x", (64, 3))))
            assert g.check().ok

    def test_golden(graph):
        assert_plan(graph.plan(), "golden/plan.json")

    def test_something_else(graph):
        found = gg.compare(graph, on=gg.cpu(), tolerance=0)
        assert 1 == 2

    def test_fine(graph):
        assert gg.compare(graph, on=gg.cpu()).ok and graph.plan() == graph.plan()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    done = pytest_says(tmp_path_factory.mktemp("failing"), MAKE + FAILING)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "9 failed, 1 passed" in done.stdout, done.stdout
    return failures(done.stdout)


@pytest.mark.parametrize("name, title", [
    ("test_ok", "pyggml: Comparison"),
    ("test_named", "pyggml: found, Comparison"),
    ("test_all", "pyggml: several, Comparison"),
    ("test_helper", "pyggml: c, Comparison"),
])  # fmt: skip
def test_failed_comparisons_say_where_it_begins(said: dict[str, str], name: str, title: str) -> None:
    (at,) = re.findall(r"-+ (pyggml: .+?) -+\n", said[name])
    assert at == title
    told = said[name].split(title)[1]
    assert "DIFF y (RMS_NORM)" in told
    assert re.search(r"first diverging node.*\n    node_2 \(MUL_MAT, f32 64x3, P\): NMSE \d", told), told
    # with its ancestry, each a step to the right
    assert re.search(r"\n      down \(weight, f32 256x64, S0 128:128\)", told)
    assert re.search(r"\n      node_1 \(SILU.*\n        node_0 \(MUL_MAT.*\n          up \(weight.*\n          x \(input", told)


def test_plans_that_are_not_equal_are_told_apart(said: dict[str, str]) -> None:
    told = said["test_plans"]
    assert "E       assert the plans differ" in told
    (line,) = [x.split() for x in told.splitlines() if "S1 128:128" in x]
    assert line == ["E", "up", "weight", "split", "S1", "128:128", "M"]
    assert told.count("\n") < 40 and "PlanNode(" not in told


def test_differences_that_should_be_nothing(said: dict[str, str]) -> None:
    assert "pyggml: PlanDiff" in said["test_diff"]
    assert re.search(r"devices +VCPU0,VCPU1 +A,B", said["test_diff"])


def test_checks_that_find_something(said: dict[str, str]) -> None:
    assert "pyggml: CheckReport" in said["test_legal"]
    assert "these two splits cannot be multiplied" in said["test_legal"] and "legal repair" in said["test_legal"]


def test_a_golden_file_that_is_not_there(said: dict[str, str]) -> None:
    told = said["test_golden"]
    assert "plan.json: there is no such file yet; pytest --pyggml-update writes it" in told
    assert 'assert_plan(graph.plan(), "golden/plan.json")' in told and "plans.py" not in told, "the test's line, not ours"


def test_other_failures_are_left_alone(said: dict[str, str]) -> None:
    assert "pyggml:" not in said["test_something_else"]


GOLDEN = """
    def test_golden(graph):
        assert_plan(graph.plan(), "golden/plan.json")
"""


def test_golden_files_are_written_compared_and_written_anew(tmp_path: Path) -> None:
    golden = tmp_path / "golden" / "plan.json"
    done = pytest_says(tmp_path, MAKE + GOLDEN, "--pyggml-update")
    assert done.returncode == 0 and f"written: {golden}" in done.stdout, done.stdout
    plan = SplitPlan.from_json(golden.read_text(encoding="utf-8"))
    assert {d["name"] for d in json.loads(golden.read_text())["leafs"]} == {"up", "down", "x"}
    done = pytest_says(tmp_path, MAKE + GOLDEN)
    assert done.returncode == 0 and "written:" not in done.stdout
    first = golden.read_bytes()
    done = pytest_says(tmp_path, MAKE + GOLDEN, "--pyggml-update")
    assert golden.read_bytes() == first and "written:" not in done.stdout, "what is right is not written again"

    other = MAKE.replace('"S1"', '"S1 3:1"').replace('"S0"', '"S0 3:1"') + GOLDEN
    done = pytest_says(tmp_path, other)
    assert done.returncode == 1
    assert re.search(r"E +up +weight +split +S1 128:128 +S1 192:64  by your rule 1", done.stdout), done.stdout
    assert "--pyggml-update writes the file anew" in done.stdout and golden.read_bytes() == first
    done = pytest_says(tmp_path, other, "--pyggml-update", "--tb=line")
    assert done.returncode == 0 and plan != SplitPlan.from_json(golden.read_text(encoding="utf-8"))


def test_who_does_not_use_it_does_not_load_it(tmp_path: Path) -> None:
    source = """
    import sys

    def test_nothing_is_loaded():
        ours = {m for m in sys.modules if m.split(".")[0] == "pyggml"}
        assert ours == {"pyggml", "pyggml._about", "pyggml.testing", "pyggml.testing.pytest_plugin"}
        assert not {"numpy", "cffi", "gguf", "rich"} & set(sys.modules)

    def test_fails():
        assert [1, 2] == [1, 3]
    """
    with_it = pytest_says(tmp_path, source, "-q")
    without = pytest_says(tmp_path, source.replace('"pyggml", "pyggml._about", "pyggml.testing", "pyggml.testing.pytest_plugin"', "").replace("{}", "set()"), "-q", plugin=("-p", "no:pyggml", "-p", "no:cacheprovider"))
    assert with_it.returncode == 1 and "1 failed, 1 passed" in with_it.stdout, with_it.stdout
    strip = re.compile(r"in [\d.]+s")
    assert strip.sub("", with_it.stdout) == strip.sub("", without.stdout)


def test_a_broken_installation_breaks_no_other_tests(tmp_path: Path) -> None:
    """The plugin is loaded by runs that have nothing to do with pyggml: also where its native code cannot be loaded."""
    package = tmp_path / "pyggml" / "testing"
    package.mkdir(parents=True)
    for name in ("__init__.py", "_about.py", "testing/__init__.py", "testing/pytest_plugin.py"):
        (tmp_path / "pyggml" / name).write_text((ROOT / "pyggml" / name).read_text(encoding="utf-8"), encoding="utf-8")
    source = """
    import pytest

    def test_fine():
        with pytest.raises(ImportError):
            import pyggml._ffi

    def test_fails():
        assert 1 == 2
    """
    # without site-packages' .pth files: that of an editable install would find the real package
    done = pytest_says(tmp_path, source, "-q", python=("-S", "-c", WITHOUT_SITE))
    assert "1 failed, 1 passed" in done.stdout and "pyggml" not in done.stdout.split("1 == 2", 1)[1].replace("test_it", ""), done.stdout


# --- without pytest's plugin


@pytest.fixture
def plan() -> SplitPlan:
    from test_plan import two_layers

    return SplitPlan.from_captures(two_layers().captured())


def test_assert_plan_by_itself(tmp_path: Path, plan: SplitPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    path = tmp_path / "plan.json"
    with pytest.raises(PlanMismatch, match="no such file"):
        assert_plan(plan, path, update=False)
    assert not path.exists()
    assert_plan(plan, path, update=True)
    assert_plan(plan, path, update=False)
    other = dataclasses.replace(plan, devices=("A", "B"), memory=tuple(dataclasses.replace(m, compute=1) for m in plan.memory))
    with pytest.raises(PlanMismatch, match="SIM0 memory") as caught:
        assert_plan(other, path, update=False)
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, gg.Error)
    assert caught.value.diff is not None and caught.value.diff.devices == (("SIM0", "SIM1"), ("A", "B"))
    assert_plan(other, path, ignore=("memory", "devices"), update=False)
    for ignore in ("memory", "devices"):
        with pytest.raises(PlanMismatch):
            assert_plan(other, path, ignore=(ignore,), update=False)
    with pytest.raises(gg.errors.ArgumentError, match="'colour'"):
        assert_plan(other, path, ignore=("colour",))
    with pytest.raises(gg.errors.ArgumentError, match="dict"):
        assert_plan({}, path)  # type: ignore[arg-type]
    monkeypatch.setenv("PYGGML_UPDATE", "1")
    assert_plan(other, path)
    monkeypatch.delenv("PYGGML_UPDATE")
    assert_plan(other, path, update=False)


def test_golden_files_have_a_line_for_each_node(tmp_path: Path, plan: SplitPlan) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    assert SplitPlan.from_json(path.read_text(encoding="utf-8")) == plan
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in plan.nodes:
        assert sum(f'"name":"{node.name}","op":"{node.op}"' in line for line in lines) == 1


def test_golden_files_that_are_none(tmp_path: Path, plan: SplitPlan) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(gg.FileFormatError, match=re.escape(str(path))):
        assert_plan(plan, path, update=False)
    assert_plan(plan, path, update=True)
    assert_plan(plan, path, update=False)


def test_relative_files_are_beside_the_test(plan: SplitPlan) -> None:
    with pytest.raises(PlanMismatch, match=re.escape(str(Path(__file__).parent / "nowhere" / "plan.json"))):
        assert_plan(plan, "nowhere/plan.json", update=False)


def test_the_plugin_is_registered() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\npyggml = "pyggml.testing.pytest_plugin"' in text
