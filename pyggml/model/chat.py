"""Conversations: chat templates, and a chat that keeps what it has read in its context."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._arguments import text
from .._ffi import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from .context import Context, GeneratedToken

__all__ = ["Chat", "apply_chat_template", "builtin_templates"]

Message = Mapping[str, str]
"""``{"role": "user", "content": "..."}``; roles are ``system``, ``user``, ``assistant``."""


def builtin_templates() -> tuple[str, ...]:
    """The names of the templates that llama.cpp knows, such as ``chatml``, ``llama3``."""
    n = int(lib.llama_chat_builtin_templates(ffi.NULL, 0))
    names = ffi.new("const char *[]", n)
    lib.llama_chat_builtin_templates(names, n)
    return tuple(sorted(ffi.string(name).decode() for name in names))


def apply_chat_template(template: str, messages: Sequence[Message], *, add_assistant: bool = True) -> str:
    """A conversation as one text. llama.cpp runs no Jinja: it tells known templates by their marks.

    Args:
        template: the name of one of `builtin_templates`, or a model's own, in Jinja.
        messages: in order, each with ``role`` and ``content``.
        add_assistant: begin the assistant's answer at the end.

    Raises:
        UnsupportedError: llama.cpp does not know the template. ArgumentError: no messages, or not of that form.
    """
    raw = text("the chat template", template)
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise ArgumentError(f"messages: expected a list of at least one {{'role': ..., 'content': ...}}, got {messages!r:.80}")
    keep = []
    for i, one in enumerate(messages):
        if not isinstance(one, Mapping) or set(one) != {"role", "content"}:
            raise ArgumentError(f"message {i}: expected {{'role': ..., 'content': ...}}, got {one!r:.80}")
        keep.append([ffi.new("char[]", text(f"{key} of message {i}", one[key])) for key in ("role", "content")])
    given = ffi.new("struct llama_chat_message[]", [{"role": role, "content": content} for role, content in keep])
    n = sum(len(part) for pair in keep for part in pair) * 2 + 1024
    for _ in range(2):
        out = ffi.new("char[]", n)
        found = int(lib.llama_chat_apply_template(raw, given, len(keep), add_assistant, out, n))
        if found < 0:
            known = builtin_templates()
            close = difflib.get_close_matches(template, known, 3, 0.6) if len(template) < 40 else []
            raise UnsupportedError(
                f"llama.cpp does not know the chat template {template!r:.60}: give the name of one that it knows "
                f"({'similar: ' + ', '.join(close) if close else ', '.join(known)}), or write the text yourself and tokenize it with parse_special=True"
            )
        if found < n:
            return bytes(ffi.buffer(out, found)).decode("utf-8", "replace")
        n = found + 1
    raise ArgumentError("llama.cpp made a conversation of another length when it was asked again")


class Chat:
    """A conversation with a model: made by `Model.chat`. What was read stays in the context; only what is new is computed.

    Where something else used the context in between, everything is read again.
    """

    def __init__(self, context: Context, template: str, *, system: str | None = None, seq: int = 0) -> None:
        self.messages: list[dict[str, str]] = []
        """All messages so far. They may be changed: the next answer is to what is in it then."""
        self._context, self._template, self._seq = context, template, seq
        self._read: list[int] = []  # the tokens that are in the context, as long as nobody else changed it
        self._changes = -1
        apply_chat_template(template, [{"role": "user", "content": "x"}])  # known, or an error now
        if system is not None:
            self.messages.append({"role": "system", "content": text("system", system).decode()})

    def say(self, message: str, **options: Any) -> Iterator[GeneratedToken]:
        """The answer to a message, token by token. Taken only in part, it is in the conversation as far as it was taken.

        Args:
            options: further arguments of `Context.generate`, such as ``max_tokens`` and ``temperature``.

        Raises:
            ArgumentError: the conversation does not fit into the context (the message is not in it then). Others: see
                `Context.generate`.
        """
        if options.get("on_full", "stop") != "stop":
            raise ArgumentError(f"on_full={options['on_full']!r}: a conversation is read again as a whole, so nothing of it can be forgotten; give a larger n_ctx")
        self.messages.append({"role": "user", "content": text("the message", message).decode()})
        try:
            whole = apply_chat_template(self._template, self.messages)
            ids = self._context.vocab.tokenize(whole, parse_special=True)
            generated = self._context.generate(self._new_of(ids), seq=self._seq, **options)
        except BaseException:
            self.messages.pop()
            raise
        self._read, self._changes = ids, self._context.n_changes
        return self._answered(generated)

    def _new_of(self, ids: list[int]) -> list[int]:
        """What has to be computed, at least the last token; the context keeps what both begin with."""
        n_past = self._context.n_past(self._seq)
        known = self._read[:n_past] if self._context.n_changes == self._changes else []
        same = next((i for i, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids)))
        same = min(same, len(ids) - 1)
        if same < n_past:
            try:
                self._context.seq_rm(self._seq, same)
            except UnsupportedError:  # a recurrent state cannot be cut: everything again
                self._context.seq_rm(self._seq)
                same = 0
        self._read, self._changes = self._read[:same], self._context.n_changes
        return ids[same:]

    def _answered(self, generated: Iterator[GeneratedToken]) -> Iterator[GeneratedToken]:
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        while True:
            alone = self._context.n_changes == self._changes
            token = next(generated, None)
            if alone:
                self._changes = self._context.n_changes
            if token is None:
                return
            self._read.append(token.id)
            answer["content"] += token.text
            yield token
