"""JSON schemas in a plain form that all models and clients understand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def plain_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of ``model`` without references, titles and ``null`` alternatives.

    An optional argument is left out of ``required`` instead.
    """
    schema = model.model_json_schema()
    plain = _plain(schema, schema.get("$defs", {}))
    assert isinstance(plain, dict)
    plain.pop("$defs", None)
    plain.setdefault("properties", {})
    plain.setdefault("required", [])
    return plain


def _plain(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    while "$ref" in node or "anyOf" in node:
        if reference := node.pop("$ref", None):
            node = {**definitions[reference.removeprefix("#/$defs/")], **node}
        if alternatives := node.pop("anyOf", None):
            [only] = [one for one in alternatives if one != {"type": "null"}]
            node = {**only, **node}
    if node.get("default", ...) is None:
        del node["default"]
    properties = node.pop("properties", None)
    if isinstance(node.get("title"), str):
        del node["title"]
    if properties is not None:
        node["properties"] = {
            name: _plain(value, definitions) for name, value in properties.items()
        }
    return {
        key: value if key in ("properties", "required") else _plain(value, definitions)
        for key, value in node.items()
        if key != "$defs"
    }
