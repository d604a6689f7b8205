#!/usr/bin/env python3
"""Hold docs/schema/job.schema.json against the job files of the parser's own tests.

Every file in jobfiles/good must be valid. A file in jobfiles/bad says in its header what is expected of
the schema: `refuses`, `accepts` (only a rule beyond the schema is broken) or `not-toml` (it never gets
that far, or its numbers do not fit). Needs Python 3.11 and `jsonschema`; exit status 1 on disagreement.
"""

import pathlib
import sys
import tomllib

import jsonschema

HERE = pathlib.Path(__file__).resolve().parent
SCHEMA = HERE.parent.parent / "docs" / "schema" / "job.schema.json"


def header(text: str, key: str) -> str | None:
    prefix = f"# {key}: "
    for line in text.splitlines():
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    return None


def fits_64_bits(value: object) -> bool:
    if isinstance(value, dict):
        return all(fits_64_bits(item) for item in value.values())
    if isinstance(value, list):
        return all(fits_64_bits(item) for item in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def verdict(validator: jsonschema.Draft202012Validator, data: bytes) -> tuple[str, str]:
    try:
        # TOML promises integers of 64 bits; Python's reader takes any.
        document = tomllib.loads(data.decode("utf-8"))
        if not fits_64_bits(document):
            return "not-toml", "a number does not fit 64 bits"
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return "not-toml", str(error)
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    return ("accepts", "") if error is None else ("refuses", f"{error.json_path}: {error.message}"[:160])


def undescribed(node: object, path: str = "$") -> list[str]:
    """Properties without a description, of their own or of what they refer to."""
    found = []
    if isinstance(node, dict):
        for name, sub in node.get("properties", {}).items() if "required" in node or path == "$" else ():
            if isinstance(sub, dict) and "description" not in sub and "$ref" not in sub:
                found.append(f"{path}.{name}")
        for name, sub in node.items():
            found += undescribed(sub, f"{path}.{name}")
    return found


def main() -> int:
    import json

    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    wrong = [f"{name}: no description" for name in undescribed(schema)]
    counts = {"good": 0, "bad": 0}
    for which in counts:
        for path in sorted((HERE / "jobfiles" / which).glob("*.toml")):
            data = path.read_bytes()
            expected = "accepts" if which == "good" else header(data.decode("utf-8", "replace"), "schema")
            found, why = verdict(validator, data)
            counts[which] += 1
            if found != expected:
                wrong.append(f"{which}/{path.name}: expected {expected}, the schema {found} it: {why}")
    for line in wrong:
        print(line, file=sys.stderr)
    if counts["good"] < 6 or counts["bad"] < 60:
        wrong.append("files are missing")
        print(f"too few files: {counts}", file=sys.stderr)
    print(f"schema: {counts['good']} good, {counts['bad']} bad files, {len(wrong)} disagreements")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
