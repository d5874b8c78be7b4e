"""Parses the selected declarations into functions and the text that cffi reads."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from pycparser import c_ast, c_generator, c_parser

from .constants import NotConstant, classify, evaluate
from .headers import GenerationError, Preprocessed

# Names that system headers define, which are not kept; cffi knows them all.
_KNOWN_TYPES = [f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_KNOWN_TYPES += ["size_t", "ssize_t", "intptr_t", "uintptr_t", "ptrdiff_t", "FILE"]
_PRELUDE = "".join(f"typedef int {name};\n" for name in _KNOWN_TYPES)

_c = c_generator.CGenerator()


@dataclass(frozen=True)
class Function:
    name: str
    header: str
    declaration: c_ast.Decl
    variadic: bool = False
    inline: bool = False
    by_value: bool = False  # takes or returns a struct of an internal header, which is opaque here

    @property
    def parameters(self) -> list[c_ast.Decl | c_ast.Typename]:
        params = self.declaration.type.args.params if self.declaration.type.args else []
        return [p for p in params if not isinstance(p, c_ast.EllipsisParam) and _c.visit(p) != "void"]

    @property
    def returns_void(self) -> bool:
        return str(_c.visit(self.declaration.type.type)).strip() == "void"

    def prototype(self, name: str) -> str:
        """The same signature under another name, parameters called p0, p1, ...; reads as C and as C++."""
        declaration = copy.deepcopy(self.declaration)
        declaration.storage, declaration.funcspec = [], []
        _rename(declaration.type.type, name)
        parameters = Function(name, self.header, declaration).parameters
        for i, parameter in enumerate(parameters):
            _rename(parameter.type, f"p{i}")
            parameter.name = f"p{i}"
        if parameters:
            named = [c_ast.Decl(f"p{i}", p.quals, [], [], [], p.type, None, None) for i, p in enumerate(parameters)]
            declaration.type.args = c_ast.ParamList(named)
        declaration.name = name
        return str(_c.visit(declaration)).replace("_Bool", "bool").replace("restrict ", "")


def _rename(node: c_ast.Node, name: str) -> None:
    while not isinstance(node, c_ast.TypeDecl):
        if isinstance(node, c_ast.ArrayDecl):
            node.dim_quals = []
        if isinstance(node, c_ast.PtrDecl):
            node.quals = [q for q in node.quals if q != "restrict"]
        node = node.type
    node.declname = name


@dataclass
class Declarations:
    text: str  # types, enumerators and constants for cffi
    functions: list[Function]
    integers: list[str]  # macros
    strings: list[str]
    skipped_macros: dict[str, str]
    structs: list[str] = field(default_factory=list)  # those with fields
    enums: dict[str, dict[str, int]] = field(default_factory=dict)  # tag -> enumerators
    tags: set[str] = field(default_factory=set)  # every tag and typedef name


def parse(preprocessed: Preprocessed) -> Declarations:
    lines = [_PRELUDE]
    for source in preprocessed.sources:
        lines.append(f'# 1 "{source.header.name}"\n' + "\n".join(source.lines) + "\n")
    try:
        tree = c_parser.CParser().parse("".join(lines), "prelude")
    except Exception as error:  # pycparser's own error class moved between its versions
        raise GenerationError(f"a bound header holds what pycparser cannot read: {error}") from error

    internal = {s.header.name for s in preprocessed.sources if s.header.functions_only}
    result = Declarations("", [], [], [], {})
    known: dict[str, int] = {}
    opaque: set[str] = set()
    typedefs: set[str] = set()
    out: list[str] = []
    for node in tree.ext:
        header = node.coord.file
        if header == "prelude":
            continue
        is_function = isinstance(node, c_ast.FuncDef) or (
            isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl)
        )
        if is_function:
            result.functions.append(_function(node, header, opaque))
        elif header in internal:
            _names_of(node, opaque)
        elif not (isinstance(node, c_ast.Typedef) and node.name in typedefs):
            out.append(_type_text(node, known, result))
            if isinstance(node, c_ast.Typedef):
                typedefs.add(node.name)  # C allows the same one again, cffi does not
    for function in result.functions:
        if function.header in internal:
            _declare_tags(function.declaration, result, out)
    result.integers, result.strings, result.skipped_macros = classify(preprocessed.macros, known)
    out += [f"#define {name} ..." for name in result.integers]
    out += [f"static const char *const {name};" for name in result.strings]
    result.text = "\n".join(out) + "\n"
    return result


def _function(node: c_ast.Node, header: str, opaque: set[str]) -> Function:
    declaration = node.decl if isinstance(node, c_ast.FuncDef) else node
    args = declaration.type.args
    variadic = args is not None and any(isinstance(p, c_ast.EllipsisParam) for p in args.params)
    types = [declaration.type.type] + [p.type for p in (args.params if args else []) if not isinstance(p, c_ast.EllipsisParam)]
    by_value = any(
        isinstance(t, c_ast.TypeDecl) and isinstance(t.type, (c_ast.Struct, c_ast.Union)) and t.type.name in opaque
        for t in types
    )
    inline = isinstance(node, c_ast.FuncDef) or "static" in declaration.storage
    return Function(declaration.name, header, declaration, variadic, inline, by_value)


def _names_of(node: c_ast.Node, names: set[str]) -> None:
    class Visitor(c_ast.NodeVisitor):  # type: ignore[misc]
        def visit_Struct(self, struct: c_ast.Struct) -> None:
            if struct.decls is not None and struct.name:
                names.add(struct.name)
            self.generic_visit(struct)

    Visitor().visit(node)


def _declare_tags(node: c_ast.Node, result: Declarations, out: list[str]) -> None:
    class Visitor(c_ast.NodeVisitor):  # type: ignore[misc]
        def visit_Struct(self, struct: c_ast.Struct) -> None:
            if struct.name and struct.name not in result.tags:
                result.tags.add(struct.name)
                out.append(f"struct {struct.name};")

    Visitor().visit(node)


def _type_text(node: c_ast.Node, known: dict[str, int], result: Declarations) -> str:
    """The declaration with every number worked out, as cffi wants it."""

    class Visitor(c_ast.NodeVisitor):  # type: ignore[misc]
        def visit_Enum(self, enum: c_ast.Enum) -> None:
            if enum.name:
                result.tags.add(enum.name)
            if enum.values is None:
                return
            values: dict[str, int] = {}
            following = 0
            for item in enum.values.enumerators:
                if item.value is not None:
                    following = self.number(item.value, f"enumerator {item.name}")
                known[item.name] = values[item.name] = following
                item.value = c_ast.Constant("int", str(following))
                following += 1
            result.enums[enum.name or f"(anonymous, with {next(iter(values))})"] = values

        def visit_Struct(self, struct: c_ast.Struct) -> None:
            if struct.name:
                result.tags.add(struct.name)
                if struct.decls is not None:
                    result.structs.append(struct.name)
            self.generic_visit(struct)

        visit_Union = visit_Struct

        def visit_Typedef(self, typedef: c_ast.Typedef) -> None:
            if not _same_name(typedef):
                result.tags.add(typedef.name)
            self.generic_visit(typedef)

        def visit_ArrayDecl(self, array: c_ast.ArrayDecl) -> None:
            if array.dim is not None:
                array.dim = c_ast.Constant("int", str(self.number(array.dim, "the size of an array")))
            array.dim_quals = []
            self.generic_visit(array)

        def number(self, expression: c_ast.Node, what: str) -> int:
            try:
                return evaluate(expression, known)
            except NotConstant as error:
                raise GenerationError(
                    f"{node.coord}: {what} is not understood ({error}): {_c.visit(expression)}. "
                    "Teach evaluate() in buildtools/ffi/constants.py"
                ) from error

    if isinstance(node, c_ast.Decl) and "static" in node.storage and "const" in node.quals:
        node.init = None  # a constant: the compiler knows its value
    Visitor().visit(node)
    return f"{_c.visit(node)};"


def _same_name(typedef: c_ast.Typedef) -> bool:
    inner = getattr(typedef.type, "type", None)
    return bool(getattr(inner, "name", None) == typedef.name)
