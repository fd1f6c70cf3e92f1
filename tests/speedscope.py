# SPDX-License-Identifier: LGPL-2.1-or-later
"""speedscope's file, as its published schema has it for sampled profiles."""

from __future__ import annotations

from typing import Any

import jsonschema

URL = "https://www.speedscope.app/file-format-schema.json"
_UNITS = ["bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds"]


def _object(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": sorted(required),
        # The schema lets others be; here they are mistakes.
        "additionalProperties": False,
    }


def _array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_STRING, _NUMBER = {"type": "string"}, {"type": "number"}
_FRAME = _object({"name": _STRING}, {"file": _STRING, "line": _NUMBER, "col": _NUMBER})
_SAMPLED = _object(
    {
        "type": {"const": "sampled"},
        "name": _STRING,
        "unit": {"enum": _UNITS},
        "startValue": _NUMBER,
        "endValue": _NUMBER,
        "samples": _array(_array(_NUMBER)),
        "weights": _array(_NUMBER),
    },
    {},
)
SCHEMA = _object(
    {
        "$schema": {"const": URL},
        "shared": _object({"frames": _array(_FRAME)}, {}),
        "profiles": _array(_SAMPLED),
    },
    {"name": _STRING, "activeProfileIndex": _NUMBER, "exporter": _STRING},
)


def stacks(whole: dict[str, Any]) -> dict[str, dict[tuple[str, ...], int]]:
    """Return the names of each profile's stacks, the outermost first, and weights."""
    jsonschema.validate(whole, SCHEMA)
    names = [frame["name"] for frame in whole["shared"]["frames"]]
    assert whole["profiles"]
    found = {}
    for profile in whole["profiles"]:
        # What the schema cannot say.
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] - profile["startValue"] == sum(profile["weights"])
        counts: dict[tuple[str, ...], int] = {}
        for sample, weight in zip(profile["samples"], profile["weights"]):
            stack = tuple(names[frame] for frame in sample)
            counts[stack] = counts.get(stack, 0) + weight
        found[profile["name"]] = counts
    return found
