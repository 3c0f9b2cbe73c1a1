"""GraphQL documents read as far as a client of W&B's needs it: no schema, no types."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(
    r'[\s,﻿]+|#[^\n]*|(?P<token>"""(?:.|\n)*?"""|"(?:\\.|[^"\\])*"|\.\.\.|[A-Za-z_]\w*'
    r"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[!$&():=@\[\]{}|])"
)


IMPLEMENTED_BY = {"ArtifactCollection": ("ArtifactSequence", "ArtifactPortfolio")}
"""The types that a fragment on an interface is for."""


class GraphQLTextError(ValueError):
    """The document is not GraphQL, or more than is read here."""


@dataclass(frozen=True)
class Variable:
    """A ``$name`` among the arguments, not yet looked up."""

    name: str


@dataclass
class Field:
    """A field, or a fragment where ``spread`` or ``on`` is set."""

    name: str = ""
    alias: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    directives: dict[str, dict[str, Any]] = field(default_factory=dict)
    selection: list["Field"] = field(default_factory=list)
    spread: str = ""
    on: str = ""


@dataclass
class Operation:
    """What one document asks for."""

    kind: str = "query"
    name: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    selection: list[Field] = field(default_factory=list)
    fragments: dict[str, Field] = field(default_factory=dict)


def parse(text: str) -> Operation:
    """The first operation of a document, with the fragments beside it."""
    return _Parser(text).document()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise GraphQLTextError(f"syntax error at {text[at : at + 20]!r}")
            if found["token"]:
                self._tokens.append(found["token"])
            at = found.end()
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise GraphQLTextError(f"expected {expected or 'more'}, found {token!r}")
        self._at += 1
        return token

    def _take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._at += 1
        return True

    def document(self) -> Operation:
        operation: Operation | None = None
        fragments: dict[str, Field] = {}
        while self._peek():
            if self._take("fragment"):
                name = self._next()
                self._next("on")
                on = self._next()
                self._directives()
                fragments[name] = Field(on=on, selection=self._selection())
                continue
            read = self._operation()
            operation = operation or read
        if operation is None:
            raise GraphQLTextError("the document holds no operation")
        operation.fragments = fragments
        return operation

    def _operation(self) -> Operation:
        operation = Operation()
        if self._peek() != "{":
            operation.kind = self._next()
            if operation.kind not in ("query", "mutation"):
                raise GraphQLTextError(f"{operation.kind!r} is no kind of operation")
            if self._peek() not in ("(", "{", "@"):
                operation.name = self._next()
            if self._take("("):
                while not self._take(")"):
                    self._next("$")
                    name = self._next()
                    self._next(":")
                    self._type()
                    if self._take("="):
                        operation.defaults[name] = self._value()
            self._directives()
        operation.selection = self._selection()
        return operation

    def _type(self) -> None:
        if self._take("["):
            self._type()
            self._next("]")
        else:
            self._next()
        self._take("!")

    def _selection(self) -> list[Field]:
        self._next("{")
        fields: list[Field] = []
        while not self._take("}"):
            fields.append(self._spread() if self._take("...") else self._field())
        return fields

    def _spread(self) -> Field:
        if self._peek() not in ("on", "{", "@"):
            return Field(spread=self._next(), directives=self._directives())
        on = self._next() and self._next() if self._peek() == "on" else ""
        return Field(on=on, directives=self._directives(), selection=self._selection())

    def _field(self) -> Field:
        name = alias = self._next()
        if self._take(":"):
            name = self._next()
        arguments = self._arguments()
        directives = self._directives()
        selection = self._selection() if self._peek() == "{" else []
        return Field(name, alias, arguments, directives, selection)

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._take("("):
            while not self._take(")"):
                name = self._next()
                self._next(":")
                arguments[name] = self._value()
        return arguments

    def _directives(self) -> dict[str, dict[str, Any]]:
        directives: dict[str, dict[str, Any]] = {}
        while self._take("@"):
            name = self._next()
            directives[name] = self._arguments()
        return directives

    def _value(self) -> Any:
        token = self._next()
        if token == "$":
            return Variable(self._next())
        if token == "[":
            items: list[Any] = []
            while not self._take("]"):
                items.append(self._value())
            return items
        if token == "{":
            values: dict[str, Any] = {}
            while not self._take("}"):
                name = self._next()
                self._next(":")
                values[name] = self._value()
            return values
        if token.startswith('"""'):
            return token[3:-3]
        if token[0] in '"-0123456789' or token in ("true", "false", "null"):
            return json.loads(token)
        return token  # an enum's name


def execute(
    operation: Operation,
    variables: Mapping[str, Any],
    root: Mapping[str, Any],
    unknown: Callable[[str], None],
) -> dict[str, Any]:
    """What is asked for out of ``root``, whose values may be functions of the arguments.

    ``unknown`` hears of every field that is not there.
    """
    return _Execution(operation, variables, unknown).select(root, operation.selection, "")


class _Execution:
    def __init__(
        self, operation: Operation, variables: Mapping[str, Any], unknown: Callable[[str], None]
    ) -> None:
        self._fragments = operation.fragments
        self._variables = {**operation.defaults, **variables}
        self._unknown = unknown

    def select(self, source: Mapping[str, Any], fields: list[Field], path: str) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for asked in fields:
            if not self._included(asked):
                continue
            if not asked.name:
                part = self._fragments.get(asked.spread) if asked.spread else asked
                if part is None:
                    raise GraphQLTextError(f"there is no fragment {asked.spread}")
                kind = source.get("__typename", part.on)
                if part.on in ("", kind) or kind in IMPLEMENTED_BY.get(part.on, ()):
                    answer.update(self.select(source, part.selection, path))
                continue
            here = f"{path}.{asked.name}".lstrip(".")
            if asked.name not in source:
                self._unknown(here)
                answer[asked.alias] = None
                continue
            value = source[asked.name]
            if callable(value):
                value = value(**self._filled(asked.arguments))
            answer[asked.alias] = self._shaped(value, asked.selection, here)
        return answer

    def _shaped(self, value: Any, fields: list[Field], path: str) -> Any:
        if isinstance(value, list):
            return [self._shaped(item, fields, path) for item in value]
        if fields and isinstance(value, Mapping):
            return self.select(value, fields, path)
        return value

    def _included(self, asked: Field) -> bool:
        for name, wanted in (("include", True), ("skip", False)):
            if name in asked.directives:
                given = self._filled(asked.directives[name]).get("if")
                if bool(given) is not wanted:
                    return False
        return True

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Variable):
            return self._variables.get(value.name)
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items()}
        return value
