"""Answers to GraphQL documents out of a tree of plain values: no schema, no types."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
    value_from_ast_untyped,
)

IMPLEMENTED_BY = {"ArtifactCollection": ("ArtifactSequence",)}
"""The types that a fragment on an interface is for."""


class Document:
    """One request's document, with its variables.

    Raises:
        GraphQLSyntaxError: it is none.
    """

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        parts = parse(text, no_location=True).definitions
        self._fragments = {p.name.value: p for p in parts if isinstance(p, FragmentDefinitionNode)}
        self._operation = next(p for p in parts if isinstance(p, OperationDefinitionNode))
        self.name = self._operation.name.value if self._operation.name else ""
        self._variables = {
            each.variable.name.value: value_from_ast_untyped(each.default_value)
            for each in self._operation.variable_definitions or ()
            if each.default_value
        } | dict(variables)

    def answer(self, root: Mapping[str, Any], unknown: Callable[[str], None]) -> dict[str, Any]:
        """What is asked for out of ``root``, whose values may be functions of the arguments;
        ``unknown`` hears of every field that is not there."""

        def select(source: Mapping[str, Any], asked: SelectionSetNode, path: str) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for node in self._fields(asked, source.get("__typename")):
                name = node.name.value
                here = f"{path}.{name}".lstrip(".")
                if name not in source:
                    unknown(here)
                    continue
                value = source[name]
                if callable(value):
                    value = value(**self._arguments(node))
                found[node.alias.value if node.alias else name] = shaped(value, node, here)
            return found

        def shaped(value: Any, node: FieldNode, path: str) -> Any:
            if isinstance(value, list):
                return [shaped(item, node, path) for item in value]
            asked = node.selection_set
            return select(value, asked, path) if asked and isinstance(value, Mapping) else value

        return select(root, self._operation.selection_set, "")

    def _fields(self, asked: SelectionSetNode, kind: str | None) -> Iterator[FieldNode]:
        for node in asked.selections:
            given = {each.name.value: self._arguments(each)["if"] for each in node.directives or ()}
            if not given.get("include", True) or given.get("skip", False):
                continue
            if isinstance(node, FieldNode):
                yield node
                continue
            spread = isinstance(node, FragmentSpreadNode)
            part = self._fragments[node.name.value] if spread else node
            on = part.type_condition.name.value if part.type_condition else kind
            if kind in (None, on, *IMPLEMENTED_BY.get(on, ())):
                yield from self._fields(part.selection_set, kind)

    def _arguments(self, node: Any) -> dict[str, Any]:
        return {
            each.name.value: value_from_ast_untyped(each.value, self._variables)
            for each in node.arguments or ()
        }
