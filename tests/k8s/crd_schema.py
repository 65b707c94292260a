"""Checks custom resources against the schemas that their operators install (CustomResourceDefinitions, as JSON).

As an API server does, but for rules in CEL and for formats; and unknown fields, which a server drops, are errors.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.rendering import ROOT

DIRECTORY_VARIABLE = "HEADCOUNT_CRD_SCHEMAS"
SIBLINGS = "*/k8s/crds/json"  # of the repository
Schema = Mapping[str, Any]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def load_schemas() -> dict[tuple[str, str], Schema]:
    """By API version and kind. Skips the test where the definitions are not there."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    directories = [Path(named)] if named else sorted(ROOT.parent.glob(SIBLINGS))
    schemas = {}
    for file in sorted(file for directory in directories for file in directory.glob("*.json.gz")):
        spec = json.loads(gzip.decompress(file.read_bytes()))["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schemas[key] = version["schema"]["openAPIV3Schema"]
    if not schemas:
        pytest.skip(f"no custom resource definitions: {DIRECTORY_VARIABLE} names a folder of *.json.gz")
    return schemas


def faults(schema: Schema, value: object, path: str = "") -> Iterator[str]:
    """One sentence for each thing in `value` that the schema does not allow."""
    if value is None and schema.get("nullable"):
        return
    if not _is_of_type(schema, value):
        yield f"{path}: {value!r} is not of type {schema.get('type', 'integer or string')}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        yield from _object_faults(schema, value, path)
    elif isinstance(value, list):
        yield from _length_faults(schema, len(value), "Items", path)
        for index, item in enumerate(value):
            yield from faults(schema["items"], item, f"{path}[{index}]")
    elif isinstance(value, str):
        yield from _length_faults(schema, len(value), "Length", path)
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: {value!r} does not match {schema['pattern']}"
    elif isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path}: {value} is out of bounds"


def _length_faults(schema: Schema, length: int, of: str, path: str) -> Iterator[str]:
    if not schema.get(f"min{of}", 0) <= length <= schema.get(f"max{of}", length):
        yield f"{path}: is {length} long"


def _is_of_type(schema: Schema, value: object) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, int | str) and not isinstance(value, bool)
    if "type" not in schema:
        return True
    return isinstance(value, TYPES[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))


def _object_faults(schema: Schema, value: Mapping[str, Any], path: str) -> Iterator[str]:
    known: Schema = schema.get("properties", {})
    others = schema.get("additionalProperties")
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or others is True or path == ".metadata"
    for name in schema.get("required", ()):
        # A server fills in defaults before it looks for what is missing.
        if name not in value and "default" not in known.get(name, {}):
            yield f"{path}.{name}: is missing"
    for name, item in value.items():
        if name in known:
            yield from faults(known[name], item, f"{path}.{name}")
        elif isinstance(others, dict):
            yield from faults(others, item, f"{path}.{name}")
        elif not is_open:
            yield f"{path}.{name}: is not known"
