"""Integer constant expressions: enumerators, array sizes, and which macros are integers or strings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pycparser import c_ast

_BINARY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: int(a / b),
    "%": lambda a, b: a - b * int(a / b),
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}
_UNARY: dict[str, Callable[[int], int]] = {"-": lambda a: -a, "+": lambda a: a, "~": lambda a: ~a}
_SIZES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "int64_t": 8, "uint64_t": 8}


class NotConstant(Exception):
    """Not an integer constant expression that can be evaluated here (the C compiler may still know it)."""


def integer(text: str) -> int:
    digits = re.sub(r"[uUlL]+$", "", text)
    try:
        if re.fullmatch(r"0[0-7]+", digits):
            return int(digits, 8)
        return int(digits, 0)
    except ValueError:
        raise NotConstant(text) from None


def evaluate(node: c_ast.Node, known: Mapping[str, int]) -> int:
    if isinstance(node, c_ast.Constant):
        if node.type == "char" and re.fullmatch(r"'[^'\\]'", node.value):
            return ord(node.value[1])
        return integer(node.value)
    if isinstance(node, c_ast.ID) and node.name in known:
        return known[node.name]
    if isinstance(node, c_ast.BinaryOp) and node.op in _BINARY:
        return _BINARY[node.op](evaluate(node.left, known), evaluate(node.right, known))
    if isinstance(node, c_ast.UnaryOp):
        if node.op in _UNARY:
            return _UNARY[node.op](evaluate(node.expr, known))
        if node.op == "sizeof" and isinstance(node.expr, c_ast.Typename):
            inner = getattr(node.expr.type, "type", None)
            name = " ".join(getattr(inner, "names", []))
            if name in _SIZES:
                return _SIZES[name]
    if isinstance(node, c_ast.Cast):
        return evaluate(node.expr, known)
    raise NotConstant(type(node).__name__)


_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']'|0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*(?![\w.])|\w+|<<|>>|[-+*/%&|^~()])""")


def classify(macros: Mapping[str, str], known: Mapping[str, int]) -> tuple[list[str], list[str], dict[str, str]]:
    """Sorts object-like macros: names of integers, names of strings, and the rest with its body."""

    def expand(body: str, hidden: frozenset[str]) -> list[str]:
        tokens: list[str] = []
        position = 0
        body = body.strip()
        while position < len(body):
            match = _TOKEN.match(body, position)
            if match is None:
                raise NotConstant(body)
            token = match.group(1)
            position = match.end()
            if token in macros and token not in hidden:
                tokens += ["(", *expand(macros[token], hidden | {token}), ")"]
            elif token in known:
                tokens.append(str(known[token]))
            else:
                tokens.append(token)
        if not tokens:
            raise NotConstant("empty")
        return tokens

    integers, strings, rest = [], [], {}
    for name, body in macros.items():
        try:
            tokens = expand(body, frozenset({name}))
            if all(t[0] == '"' for t in tokens if t not in "()"):
                strings.append(name)
                continue
            for i, token in enumerate(tokens):
                if re.match(r"\d", token):
                    tokens[i] = str(integer(token))
                elif re.match(r"[\w\"']", token):
                    raise NotConstant(token)
            int(eval(" ".join(tokens), {"__builtins__": {}}))  # digits, operators and brackets only: see above
            integers.append(name)
        except (NotConstant, SyntaxError, TypeError, ZeroDivisionError):
            rest[name] = body
    return integers, strings, rest
