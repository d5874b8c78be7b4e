"""The generator of the bindings says no where it would otherwise bind something wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "buildtools"))

import gen_ffi  # noqa: E402

from ffi import constants, emit, left_out  # noqa: E402
from ffi.declarations import parse  # noqa: E402
from ffi.headers import GenerationError, Header, Preprocessed, Source, preprocess, selected  # noqa: E402

SOURCE = ROOT / "vendor/llama.cpp"
NATIVE = ROOT / "native"
HEADER = Header("x.h", "native")


def declarations(text: str, macros: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    return parse(Preprocessed([Source(HEADER, text.splitlines())], macros or {}))


def test_enumerators_and_array_sizes_are_worked_out() -> None:
    result = declarations("enum e { A = 1 << 3, B, C = A | 3, D = -1 }; struct s { char x[B * 2 / sizeof(int32_t)]; };")
    assert result.enums["e"] == {"A": 8, "B": 9, "C": 11, "D": -1}
    assert "char x[4]" in result.text


def test_macros_are_sorted() -> None:
    macros = {"A": "0x10u", "B": "(A + 2)", "S": '"text"', "T": "S", "F": "1.5f", "K": "extern", "E": "", "G": "other(3)"}
    integers, strings, rest = constants.classify(macros, {})
    assert (integers, strings, set(rest)) == (["A", "B"], ["S", "T"], {"F", "K", "E", "G"})


def test_what_cannot_be_worked_out_is_named() -> None:
    with pytest.raises(GenerationError, match=r"size of an array.*unknown_macro"):
        declarations("struct s { int x[unknown_macro]; };")


def test_syntax_that_is_not_c_is_named() -> None:
    with pytest.raises(GenerationError, match="pycparser"):
        declarations("template <class T> int f();")


def test_a_variadic_function_needs_a_reason() -> None:
    with pytest.raises(GenerationError, match=r"ggml_new_format is variadic.*left_out\.py"):
        gen_ffi.bound(declarations("void ggml_new_format(const char * f, ...);"), set())


def test_a_reason_needs_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gen_ffi, "FUNCTIONS", {"ggml_gone": "it was variadic"})
    with pytest.raises(GenerationError, match="ggml_gone"):
        gen_ffi.bound(declarations("void ggml_here(void);"), set())


WRAPPER = """
static PyObject *
_cffi_f_f(PyObject *self, PyObject *arg0)
{
  struct _cffi_freeme_s *large_args_free = NULL;
  Py_BEGIN_ALLOW_THREADS
  { result = f(x0); }
  Py_END_ALLOW_THREADS
  return pyresult;
}
"""


def test_every_wrapper_gets_one_check() -> None:
    text = emit.add_checks(WRAPPER, ["f"])
    assert text.count("pgg_check()") == 1
    assert text.index("Py_END_ALLOW_THREADS") < text.index("pgg_check()") < text.index("return pyresult")
    assert "_cffi_free_array_arguments" in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (WRAPPER.replace("  Py_END_ALLOW_THREADS\n", "  PyEval_RestoreThread(save);\n"), ["f"]),
        (WRAPPER.replace("_cffi_f_f", "_cffi_call_f"), ["f"]),
        (WRAPPER, ["f", "g"]),
        (WRAPPER, []),
        (WRAPPER.replace("  Py_END_ALLOW_THREADS\n", "  Py_END_ALLOW_THREADS\n" * 2), ["f"]),
    ],
)
def test_another_form_of_wrapper_fails_the_build(text: str, names: list[str]) -> None:
    with pytest.raises(GenerationError, match=r"cffi .* adapt the function"):
        emit.add_checks(text, names)


def test_functions_that_share_a_name_with_a_type() -> None:
    result = declarations("enum kind { A }; enum kind kind(int x);")
    text = emit.module([], result, result.functions, "m")
    assert "#define kind(...) pgg_call_kind(__VA_ARGS__)" in text
    assert "enum kind pgg_call_kind(int p0);" in text


needs_source = pytest.mark.skipif(
    not (SOURCE / "include/llama.h").is_file() or shutil.which("cc") is None, reason="needs the llama.cpp source and cc"
)


@needs_source
def test_parts_that_are_not_built_are_not_bound() -> None:
    all_of_it = parse(preprocess(selected(set()), SOURCE, NATIVE, "cc"))
    without = {"llama", "rpc"}
    less = parse(preprocess(selected(without), SOURCE, NATIVE, "cc"))
    names = {f.name for f in gen_ffi.bound(all_of_it, set())}
    fewer = {f.name for f in gen_ffi.bound(less, without)}
    gone = names - fewer
    assert fewer < names and {"llama_decode", "ggml_backend_rpc_init", "pgg_llama_device"} <= gone
    assert all("llama" in n or "rpc" in n for n in gone)
    with pytest.raises(GenerationError, match="there is no such part"):
        selected({"cuda"})


@needs_source
def test_a_changed_header_changes_the_bindings(tmp_path: Path) -> None:
    copy = tmp_path / "llama.cpp"
    for folder in ("ggml/include", "ggml/src", "include"):
        (copy / folder).mkdir(parents=True)
        for header in (SOURCE / folder).glob("*.h"):
            shutil.copy(header, copy / folder)
    header = copy / "ggml/include/ggml-backend.h"
    text = header.read_text()
    assert text.count("uint32_t nr[16];") == 1
    header.write_text(text.replace("uint32_t nr[16];", "uint32_t nr[16]; uint64_t inserted[2];"))
    assert "uint64_t inserted[2];" in parse(preprocess(selected(set()), copy, NATIVE, "cc")).text
    header.unlink()
    with pytest.raises(GenerationError, match=r"ggml-backend\.h is missing"):
        preprocess(selected(set()), copy, NATIVE, "cc")


def test_reasons_are_sentences() -> None:
    for name, why in {**left_out.FUNCTIONS, **left_out.SYMBOLS}.items():
        assert len(why.split()) >= 3, name
