"""GGUF files that are wrong: each is refused with a reason, and what is let through does not crash libllama."""

from __future__ import annotations

import os
import re
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf_damage
import numpy as np
import pytest

import pyggml as gg
from pyggml.gguf_check import GGUFArray, GGUFInfo, TruncatedFileError, check_gguf
from pyggml.testing import llama_header, tiny_gguf
from pyggml.testing.gguf_writer import gguf_header, write_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", **gguf_damage.SMALL).path  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def with_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_damage.with_vocabulary(tmp_path_factory.mktemp("gguf") / "words.gguf")


@pytest.fixture
def changed(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with other metadata (None removes a key), and other tensors."""

    def change(metadata: dict[str, object] | None = None, tensors: dict[str, object] | None = None) -> Path:
        keys, arrays = gguf_damage.parts(tiny)
        keys.update(metadata or {})
        arrays.update(tensors or {})
        return write_gguf(
            tmp_path / "changed.gguf",
            {k: v for k, v in keys.items() if v is not None},
            {k: v for k, v in arrays.items() if v is not None},
        )

    return change


def patched(source: Path, target: Path, at: int, new: bytes) -> Path:
    raw = bytearray(source.read_bytes())
    raw[at : at + len(new)] = new
    target.write_bytes(raw)
    return target


def test_what_it_says(tiny: Path) -> None:
    info = check_gguf(tiny)
    assert isinstance(info, GGUFInfo)
    assert (info.path, info.paths, info.version, info.arch, info.n_bytes) == (tiny, (tiny,), 3, "llama", tiny.stat().st_size)
    assert info.metadata["llama.block_count"] == 2
    assert info.types["llama.block_count"] == "uint32"
    assert info.tensor_bytes == sum(4 * int(np.prod(t.ne)) for t in info.tensors)
    t = info.tensor("blk.1.ffn_down.weight")
    assert t is not None
    assert (t.ne, t.dtype.name, t.nbytes, t.path) == ((128, 64), "f32", 4 * 128 * 64, tiny)
    with pytest.raises(AttributeError):
        info.arch = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        info.metadata["x"] = 1  # type: ignore[index]


def test_arrays_stay_in_the_file(with_vocabulary: Path) -> None:
    info = check_gguf(with_vocabulary)
    tokens, scores = info.metadata["tokenizer.ggml.tokens"], info.metadata["tokenizer.ggml.scores"]
    assert isinstance(tokens, GGUFArray)
    assert isinstance(scores, GGUFArray)
    assert (tokens.type, len(tokens), scores.type, len(scores)) == ("string", 64, "float32", 64)
    words = tokens.load()
    assert (words[0], words[-1]) == ("<unk>", "▁word50")
    assert scores.load().tolist() == [-i for i in range(64)]
    assert info.metadata["general.tags"].load() == ["a", "", "c"]  # type: ignore[union-attr]


def test_a_file_that_changes_after_the_check(with_vocabulary: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(with_vocabulary.read_bytes())
    tokens = check_gguf(copy).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GGUFArray)
    patched(copy, copy, tokens.offset, b"\xff" * 8)
    with pytest.raises(gg.FileFormatError, match="changed since"):
        tokens.load()
    os.truncate(copy, tokens.offset + 3)
    with pytest.raises(gg.FileFormatError, match="changed since"):
        tokens.load()
    copy.unlink()
    with pytest.raises(gg.FileFormatError, match="cannot be read any more"):
        tokens.load()


class TestPaths:
    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.gguf", tmp_path / "no" / "folder.gguf", "", "a\0b", str(tmp_path / ("x" * 300))):
            with pytest.raises((gg.ModelNotFoundError, gg.FileFormatError), match=r"no such file|not a file name|cannot be read|path is empty"):
                check_gguf(path)

    def test_name_through_a_file(self, tiny: Path) -> None:
        with pytest.raises(gg.ModelNotFoundError):
            check_gguf(tiny / "x.gguf")

    def test_directory_and_device(self, tmp_path: Path) -> None:
        with pytest.raises(gg.FileFormatError, match="is a directory"):
            check_gguf(tmp_path)
        with pytest.raises(gg.FileFormatError, match="not a regular file"):
            check_gguf("/dev/zero")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(gg.FileFormatError, match="not a regular file"):
            check_gguf(tmp_path / "pipe")

    def test_unreadable(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")  # root may read everything, so no file would do

        monkeypatch.setattr("pyggml.gguf_check.open", refuse, raising=False)
        with pytest.raises(gg.FileFormatError, match="cannot be read: Permission denied"):
            check_gguf(tiny)

    def test_not_a_gguf(self, tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        path.write_bytes(b"PK\3\4" + bytes(100))
        with pytest.raises(gg.FileFormatError, match=r"magic number at byte 0: found b'PK.*expected b'GGUF'"):
            check_gguf(path)
        path.write_bytes(b"")
        with pytest.raises(gg.FileFormatError, match="the file ends inside the GGUF header at byte 0: found 0 more bytes, expected 24"):
            check_gguf(path)

    def test_lists_are_no_paths(self) -> None:
        with pytest.raises(gg.ArgumentError, match="a str or a Path"):
            check_gguf(["x"])  # type: ignore[arg-type]


class TestFormat:
    @pytest.mark.parametrize(
        ("at", "new", "message"),
        [
            (4, struct.pack("<I", 1), r"version at byte 4: found 1, expected 2 or 3"),
            (4, struct.pack("<I", 4), r"version at byte 4: found 4"),
            (4, struct.pack(">I", 3), r"found 0x3000000, expected 2 or 3; this is a big-endian file"),
            (8, struct.pack("<Q", 1 << 60), r"number of tensors at byte 8: found 1152921504606846976"),
            (16, struct.pack("<Q", 1 << 63), r"number of metadata keys at byte 16"),
            (24, struct.pack("<Q", 0), r"metadata key 0 at byte 24: found ''"),
            (24, struct.pack("<Q", 1 << 40), r"length of metadata key 0 at byte 24: found 1099511627776, expected at most 65535"),
            (32, b"\xff", "expected UTF-8 text"),
            (32, b"\0", "no zero bytes"),
            (32 + 20, struct.pack("<I", 13), "type of metadata key 'general.architecture' at byte 52: found 13"),
            (32 + 24, struct.pack("<Q", 1 << 62), "length of the value of general.architecture"),
        ],
    )
    def test_header(self, tiny: Path, tmp_path: Path, at: int, new: bytes, message: str) -> None:
        with pytest.raises(gg.FileFormatError, match=message):
            check_gguf(patched(tiny, tmp_path / "x.gguf", at, new))

    @pytest.mark.parametrize(
        ("part", "new", "message"),
        [
            ("count", 5, "number of axes of tensor 'token_embd.weight' at byte .*: found 5, expected at most 4"),
            ("ne", 0, r"shape of tensor 'token_embd.weight' .*: found \[0, 64\]"),
            ("ne", 1 << 62, "expected 1 to 2"),
            ("ne", 1 << 50, "expected less than"),
            ("type", 4, "format of tensor 'token_embd.weight' .*: found 4, expected a number format that ggml knows"),
            ("type", 1 << 31, "expected a number format"),
            ("type", 12, r"axis 0 a multiple of 256, the block of q4_K"),
            ("offset", 32, "offset of tensor 'token_embd.weight' .*: found 32, expected 0"),
        ],
    )
    def test_tensor(self, tiny: Path, tmp_path: Path, part: str, new: int, message: str) -> None:
        name = b"token_embd.weight"
        begin = tiny.read_bytes().index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        at, width = {"count": (0, "I"), "ne": (4, "Q"), "type": (20, "I"), "offset": (24, "Q")}[part]
        with pytest.raises(gg.FileFormatError, match=message):
            check_gguf(patched(tiny, tmp_path / "x.gguf", begin + at, struct.pack(f"<{width}", new)))

    def test_twice_the_same(self, tmp_path: Path) -> None:
        head, _ = gguf_header({"a": 1, "b": 2}, [("t", (1,), gg.as_dtype("f32")), ("u", (1,), gg.as_dtype("f32"))])
        path = tmp_path / "x.gguf"
        for old, new, what in ((b"b", b"a", "metadata key 1"), (b"u", b"t", "name of tensor 1")):
            path.write_bytes(head.replace(b"\1\0\0\0\0\0\0\0" + old, b"\1\0\0\0\0\0\0\0" + new) + bytes(64))
            with pytest.raises(gg.FileFormatError, match=f"{what} at byte .*: found '{new.decode()}' again"):
                check_gguf(path, model=False)

    @pytest.mark.parametrize("length", [64, 100, 1 << 30])
    def test_long_tensor_name(self, tiny: Path, tmp_path: Path, length: int) -> None:
        at = tiny.read_bytes().index(b"token_embd.weight") - 8
        with pytest.raises(gg.FileFormatError, match=f"length of the name of tensor 0 .*found {length}, expected at most 63"):
            check_gguf(patched(tiny, tmp_path / "x.gguf", at, struct.pack("<Q", length)))

    @pytest.mark.parametrize("value", [0, 4, 33, 48, "32", -1.0])
    def test_alignment(self, changed: Callable[..., Path], value: object) -> None:
        with pytest.raises(gg.FileFormatError, match=r"general.alignment: found .*expected a uint32 power of two"):
            check_gguf(changed({"general.alignment": value}))

    @pytest.mark.parametrize("alignment", [8, 64, 4096])
    def test_other_alignment(self, tmp_path: Path, alignment: int) -> None:
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        writer.add_custom_alignment(alignment)
        for i in range(3):
            writer.add_tensor(f"t{i}", np.full(5 + i, i, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        info = check_gguf(tmp_path / "x.gguf", model=False)
        raw = info.path.read_bytes()
        for i, t in enumerate(info.tensors):
            assert t.offset % alignment == 0
            assert np.frombuffer(raw, np.float32, 5 + i, t.offset).tolist() == [i] * (5 + i)

    @pytest.mark.parametrize(
        ("where", "kind", "message"),
        [
            (4, "<Q", "length of array 'tokenizer.ggml.tokens'"),
            (12, "<Q", "length of string 0 of 'tokenizer.ggml.tokens'"),
            (0, "<I", "element type of array 'tokenizer.ggml.tokens'"),
        ],
    )
    def test_array(self, with_vocabulary: Path, tmp_path: Path, where: int, kind: str, message: str) -> None:
        name = b"tokenizer.ggml.tokens"
        at = with_vocabulary.read_bytes().index(name) + len(name) + 4
        for value in (1 << 31, 9, 1 << 24) if kind == "<I" else (1 << 63, 1 << 40, 1 << 25):
            with pytest.raises(gg.FileFormatError, match=message):
                check_gguf(patched(with_vocabulary, tmp_path / "x.gguf", at + where, struct.pack(kind, value)))

    def test_string_that_runs_over_the_end(self, with_vocabulary: Path, tmp_path: Path) -> None:
        at = with_vocabulary.read_bytes().index(b"general.tags") + len("general.tags") + 16
        with pytest.raises(gg.FileFormatError, match=r"string 0 of 'general.tags' at byte \d+: found a length beyond the end"):
            check_gguf(patched(with_vocabulary, tmp_path / "x.gguf", at, struct.pack("<Q", 1 << 45)))

    def test_numeric_array_that_runs_over_the_end(self, with_vocabulary: Path, tmp_path: Path) -> None:
        name = b"tokenizer.ggml.scores"
        at = with_vocabulary.read_bytes().index(name) + len(name) + 8
        for n in (1 << 62, 1 << 30, 1 << 20):
            with pytest.raises(gg.FileFormatError, match=f"length of array 'tokenizer.ggml.scores' .*found {n} "):
                check_gguf(patched(with_vocabulary, tmp_path / "x.gguf", at, struct.pack("<Q", n)))

    def test_tensors_that_are_not_all_there(self, tiny: Path, tmp_path: Path) -> None:
        copy = patched(tiny, tmp_path / "x.gguf", 0, b"")
        os.truncate(copy, copy.stat().st_size - 1)
        with pytest.raises(TruncatedFileError, match=r"tensor 'blk\.1\..*' ends at byte .*; it may be truncated") as caught:
            check_gguf(copy)
        assert caught.value.whole_size == tiny.stat().st_size
        assert caught.value.header_size == check_gguf(tiny).tensors[0].offset


class TestVocabulary:
    @pytest.mark.parametrize(("old", "new"), [(b"word11", b"word12"), (b"<s>", b"<S>")])
    def test_every_token_once(self, with_vocabulary: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
        # llama.cpp: GGML_ASSERT(id_to_token.size() == token_to_id.size())
        raw = with_vocabulary.read_bytes()
        path = tmp_path / "x.gguf"
        path.write_bytes(raw.replace(old, new))
        if old == b"<s>":
            assert check_gguf(path).arch == "llama"
            return
        with pytest.raises(gg.FileFormatError, match=r"token 25 of 'tokenizer.ggml.tokens' at byte \d+: found b'.*word12' again"):
            check_gguf(path)

    @pytest.mark.parametrize("size", [0, 1, 3, 64])
    def test_across_windows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        """Strings that lie over the edge of what is read at once."""
        words = [f"{i:0{1 + i % 7}d}" for i in range(300)]
        path = write_gguf(tmp_path / "x.gguf", {"tokenizer.ggml.tokens": words, "other": words, "n": np.arange(size)}, {})
        monkeypatch.setattr("pyggml.gguf_check._WINDOW", 40 + size)
        info = check_gguf(path, model=False)
        assert info.metadata["tokenizer.ggml.tokens"].load() == info.metadata["other"].load() == words  # type: ignore[union-attr]
        write_gguf(path, {"tokenizer.ggml.tokens": [*words, "7"]}, {})
        with pytest.raises(gg.FileFormatError, match=r"token 300 .*b'7' again"):
            check_gguf(path, model=False)

    def test_a_real_one_is_fast(self, tmp_path: Path) -> None:
        path = llama_header(tmp_path / "h.gguf", "llama-70b")
        best = 1e9
        for _ in range(3):
            begin = time.process_time()
            check_gguf(path)
            best = min(best, time.process_time() - begin)
        assert best <= 0.3


class TestModel:
    """Metadata on which libllama would assert, divide by zero, or abort on another thread."""

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"general.architecture": None}, "general.architecture: found nothing"),
            ({"general.architecture": ""}, "general.architecture: found ''"),
            ({"general.architecture": "a b%s"}, "general.architecture: found 'a b%s'"),
            ({"general.architecture": 7}, "general.architecture: found 7"),
            ({"llama.block_count": None}, "block_count: found None, expected 1 to 512"),
            ({"llama.block_count": 0}, "block_count: found 0"),
            ({"llama.block_count": 513}, "block_count: found 513"),
            ({"llama.block_count": "2"}, r"block_count: found '2' \(string\), expected a uint32"),
            ({"llama.nextn_predict_layers": 2}, "nextn_predict_layers: found 2, expected less than block_count, 2"),
            ({"llama.embedding_length": 0}, "embedding_length: found 0"),
            ({"llama.context_length": None}, "context_length: found None"),
            ({"llama.context_length": 0xFFFFFFFF}, "context_length: found 4294967295"),
            ({"llama.expert_count": 2000, "llama.expert_used_count": 1}, "expert_count: found 2000, expected at most 1024"),
            ({"llama.expert_count": 4}, "expert_used_count: found 0, expected 1 to expert_count, 4"),
            ({"llama.expert_count": 4, "llama.expert_used_count": 5}, "expert_used_count: found 5"),
            ({"llama.expert_used_count": 1}, "expert_used_count: found 1, expected 0, as expert_count is 0"),
            ({"llama.expert_group_count": 2}, "expert_group_count: found 2 of which 0"),
            ({"llama.attention.head_count": 3}, "head_count of layer 0: found 3, expected a multiple of attention.head_count_kv, 2"),
            ({"llama.attention.head_count": np.array([4], np.uint32)}, "found 1 x uint32, expected 2 x uint32, one per layer"),
            ({"llama.attention.head_count": np.array([4, -4], np.int32)}, "found -4, expected no negative"),
            ({"llama.attention.key_length": 0}, "expected heads of at least one"),
            ({"llama.rope.dimension_count": 15}, "dimension_count: found 15, expected an even number up to 16"),
            ({"llama.rope.dimension_count": 32}, "dimension_count: found 32"),
            ({"llama.rope.dimension_sections": np.zeros(4, np.int32)}, r"dimension_sections: found \[0, 0, 0, 0\]"),
            ({"llama.rope.dimension_sections": np.array([9, -9, 2, 0], np.int32)}, "dimension_sections: found"),
            ({"llama.rope.dimension_sections": 4}, "dimension_sections: found 4, expected an array"),
            ({"llama.rope.scaling.type": "cubic"}, "rope.scaling.type: found 'cubic', expected one of none, linear, yarn"),
            ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon: found -1.0"),
            ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon: found nan"),
            ({"llama.attention.layer_norm_epsilon": float("inf")}, "epsilon: found inf"),
            ({"llama.full_attention_interval": 0}, "full_attention_interval: found 0, expected at least 1"),
            ({"llama.ssm.group_count": 0}, "ssm.group_count: found 0"),
            ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model: found 3"),
            ({"tokenizer.ggml.tokens": np.arange(4)}, "tokenizer.ggml.tokens: found .*expected an array of strings"),
            ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": np.zeros(1, np.float32)}, "expected at least 2 x float32"),
            ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": np.zeros(2)}, "expected at least 2 x int32"),
        ],
    )
    def test_metadata(self, changed: Callable[..., Path], metadata: dict[str, object], message: str) -> None:
        path = changed(metadata)
        with pytest.raises(gg.FileFormatError, match=message):
            check_gguf(path)
        assert check_gguf(path, model=False).tensors

    def test_without_a_model_there_is_no_architecture(self, changed: Callable[..., Path]) -> None:
        assert check_gguf(changed({"general.architecture": None}), model=False).arch is None

    @pytest.mark.parametrize("dtype", ["f16", "i32", "f64"])
    def test_format_of_a_norm(self, changed: Callable[..., Path], dtype: str) -> None:
        value = np.ones(64, {"f16": np.float16, "i32": np.int32, "f64": np.float64}[dtype])
        with pytest.raises(gg.FileFormatError, match=rf"format of tensor 'output_norm.weight'.*: found {dtype}, expected"):
            check_gguf(changed(tensors={"output_norm.weight": value}))

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float64])
    def test_format_of_a_matrix(self, changed: Callable[..., Path], dtype: type) -> None:
        value = np.ones((128, 64), dtype)
        with pytest.raises(gg.FileFormatError, match=r"format of tensor 'blk.0.ffn_up.weight': found .*, expected a format for weights"):
            check_gguf(changed(tensors={"blk.0.ffn_up.weight": value}))

    def test_layers_of_linear_attention(self, tmp_path: Path) -> None:
        path = tiny_gguf(tmp_path / "q.gguf", "qwen35", n_layer=2, shares=[(1,)]).path
        metadata, arrays = gguf_damage.parts(path)
        for changes, message in (
            ({"qwen35.ssm.time_step_rank": 3, "qwen35.ssm.group_count": 2}, "time_step_rank: found 3, expected a multiple"),
            ({"qwen35.ssm.inner_size": 77}, "inner_size: found 77, expected ssm.time_step_rank x ssm.state_size"),
            ({"qwen35.rope.dimension_count": 0}, "dimension_count: found 0, expected at least 2"),
        ):
            write_gguf(path, {**metadata, **changes}, arrays)
            with pytest.raises(gg.FileFormatError, match=message):
                check_gguf(path)
        write_gguf(path, metadata, {k: v for k, v in arrays.items() if k != "blk.0.attn_qkv.weight"})
        with pytest.raises(gg.FileFormatError, match=r"tensor 'blk.0.attn_qkv.weight': found none"):
            check_gguf(path)


class TestSplitFiles:
    @pytest.fixture
    def parts(self, tiny: Path, tmp_path: Path) -> Callable[..., list[Path]]:
        def write(count: int = 3, *, total: int | None = None, repeat: bool = False, numbers: tuple[int, ...] = (0, 1, 2)) -> list[Path]:
            metadata, tensors = gguf_damage.parts(tiny)
            arrays = list(tensors.items())
            paths = []
            for i in range(count):
                keys = {"split.no": np.uint16(numbers[i]), "split.count": np.uint16(count), "split.tensors.count": np.int32(len(arrays) if total is None else total)}
                path = tmp_path / f"m-{i + 1:05d}-of-{count:05d}.gguf"
                write_gguf(path, metadata if i == 0 else {}, dict(arrays[i::count] + (arrays[:1] if repeat else [])))
                _append_scalars(path, keys)
                paths.append(path)
            return paths

        return write

    def test_whole(self, tiny: Path, parts: Callable[..., list[Path]]) -> None:
        paths = parts()
        info = check_gguf(paths[0])
        assert info.paths == tuple(paths)
        assert info.arch == "llama"
        assert {t.name for t in info.tensors} == {t.name for t in check_gguf(tiny).tensors}
        assert info.n_bytes == sum(p.stat().st_size for p in paths)
        t = info.tensor("output_norm.weight")
        assert t is not None
        want = check_gguf(tiny).tensor("output_norm.weight")
        assert want is not None
        assert t.path.read_bytes()[t.offset : t.offset + t.nbytes] == tiny.read_bytes()[want.offset : want.offset + want.nbytes]

    def test_llama_cpp_agrees(self, parts: Callable[..., list[Path]]) -> None:
        with gg.Model(parts()[0], threads=1) as model:
            assert np.isfinite(model.logits([1, 2])).all()

    def test_a_part_is_missing(self, parts: Callable[..., list[Path]]) -> None:
        paths = parts()
        paths[1].unlink()
        with pytest.raises(gg.ModelNotFoundError, match=r"m-00002-of-00003.gguf: no such file; it is part 2 of "):
            check_gguf(paths[0])

    def test_not_the_first(self, parts: Callable[..., list[Path]]) -> None:
        with pytest.raises(gg.FileFormatError, match=r"is file 2 of a split model, expected the first: .*m-00001-of-00003.gguf"):
            check_gguf(parts()[1])

    def test_renamed(self, parts: Callable[..., list[Path]], tmp_path: Path) -> None:
        path = parts()[0].rename(tmp_path / "model.gguf")
        with pytest.raises(gg.FileFormatError, match="file 1 of a model split into 3: expected a name that says so"):
            check_gguf(path)

    def test_wrong_numbers(self, parts: Callable[..., list[Path]]) -> None:
        with pytest.raises(gg.FileFormatError, match=r"split.no: found 2, expected 1"):
            check_gguf(parts(numbers=(0, 2, 1))[0])
        with pytest.raises(gg.FileFormatError, match=r"split.tensors.count: found 7, expected 21 as int32"):
            check_gguf(parts(total=7)[0])
        with pytest.raises(gg.FileFormatError, match=r"tensor '.*': found in .*m-00001"):
            check_gguf(parts(repeat=True)[0])

    def test_a_part_is_damaged(self, parts: Callable[..., list[Path]]) -> None:
        paths = parts()
        patched(paths[2], paths[2], 0, b"XXXX")
        with pytest.raises(gg.FileFormatError, match=r"m-00003-of-00003.gguf: magic number"):
            check_gguf(paths[0])


def _append_scalars(path: Path, keys: dict[str, np.generic]) -> None:
    """Adds metadata of types that the writer does not write."""
    kinds = {"uint16": (2, "<H"), "int32": (5, "<i")}
    info, raw = check_gguf(path, model=False), path.read_bytes()
    # behind the header's three numbers; the data moves by a multiple of the alignment, filled up with a last key
    extra = b""
    for key, value in keys.items():
        kind, fmt = kinds[value.dtype.name]
        extra += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + struct.pack(fmt, int(value))
    filler = -(len(extra) + 8 + 1 + 4 + 8) % 32
    extra += struct.pack("<Q1sIQ", 1, b"z", 8, filler) + b"-" * filler
    assert len(extra) % 32 == 0
    n_tensors, n_keys = struct.unpack_from("<QQ", raw, 8)
    assert n_tensors == len(info.tensors)
    path.write_bytes(raw[:16] + struct.pack("<Q", n_keys + len(keys) + 1) + extra + raw[24:])


@pytest.mark.parametrize("which", ["tiny", "with_vocabulary"])
def test_damaged_files(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """1,000 of each: an info or an Error, never another exception, never slow, never much memory."""
    raw = request.getfixturevalue(which).read_bytes()
    path = tmp_path / "damaged.gguf"
    outcomes: Counter[tuple[str, str]] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, damaged in gguf_damage.corruptions(raw, 1000, seed=1):
        path.write_bytes(damaged)
        begin = time.process_time()
        try:
            info = check_gguf(path)
        except gg.Error as error:
            assert str(path) in str(error)
            assert re.search(r"expected|truncated|no such", str(error)), error
            outcomes[kind, "refused"] += 1
        else:
            assert info.arch
            assert all(t.offset + t.nbytes <= len(damaged) for t in info.tensors)
            outcomes[kind, "taken"] += 1
        assert time.process_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    refused = sum(n for (_, what), n in outcomes.items() if what == "refused")
    assert refused > 500, outcomes
    assert all(outcomes[kind, "refused"] for kind in ("cut", "flip", "byte", "length", "insert", "delete", "swap", "word"))
