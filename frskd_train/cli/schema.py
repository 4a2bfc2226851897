"""The command `frskd schema`: print a JSON schema of recipes, made from the settings, for completion in editors."""

import argparse
import ast
import inspect
import itertools
import json
import typing
from collections.abc import Sequence
from types import UnionType
from typing import Any

from frskd_train.settings import Settings, default_settings, flat
from frskd_train.settings.constraints import SIDES, OneOf, Pattern, Range
from frskd_train.settings.recipe import NOT_IN_RECIPES

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe."""
    properties: dict[str, Any] = {}
    defaults = flat(default_settings())
    for group in typing.get_type_hints(Settings).values():
        texts = _descriptions(group)
        for name, kind in typing.get_type_hints(group, include_extras=True).items():
            if name not in NOT_IN_RECIPES:
                properties[name] = {"description": texts[name], "default": defaults[name], **_schema(kind)}
    spelled = {name.replace("_", "-"): {"$ref": f"#/properties/{name}"} for name in properties if "_" in name}
    recipe = {"title": "Recipe of frskd train", "type": "object", "properties": properties | spelled}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe, "additionalProperties": False}


def _descriptions(group: type) -> dict[str, str]:
    """Return the text below each setting of a group."""
    body: Any = ast.parse(inspect.getsource(group)).body[0]
    return {
        ast.unparse(setting.target): " ".join(ast.literal_eval(text.value).split())
        for setting, text in itertools.pairwise(body.body)
        if isinstance(setting, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _schema(kind: Any, facts: Sequence[Any] = ()) -> dict[str, Any]:
    if typing.get_origin(kind) is typing.Annotated:
        inner, *more = typing.get_args(kind)
        return _schema(inner, [*facts, *more])
    if typing.get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return {"enum": list(parts)}
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return {"anyOf": [_schema(part, facts) for part in parts]}
    if typing.get_origin(kind) is tuple:
        item = _schema(parts[0], facts)
        if Ellipsis in parts:  # one value needs no brackets
            bounds = {"minItems": 1, "maxItems": 2} if SIDES in facts else {}
            return {"anyOf": [item, {"type": "array", "items": item, **bounds}]}
        return {"type": "array", "items": item, "minItems": len(parts), "maxItems": len(parts)}
    found: dict[str, Any] = {"type": _PLAIN[kind]}
    for fact in facts:
        if isinstance(fact, Range) and kind in (int, float):
            limits = {"minimum": fact.low, "maximum": fact.high, "exclusiveMinimum": fact.above}
            found |= {name: limit for name, limit in limits.items() if limit is not None}
        elif isinstance(fact, OneOf) and kind is str:
            found["enum"] = list(fact.names)
        elif isinstance(fact, Pattern) and kind is str:
            found["pattern"] = f"^(?:{fact.regex})$"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the schema."""
    argparse.ArgumentParser("frskd schema", description="Print a JSON schema of recipes.").parse_args(arguments)
    print(json.dumps(recipe_schema(), indent=2))
