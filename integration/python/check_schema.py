"""Hold a job file or an envelope's statement against a JSON Schema: check_schema.py SCHEMA FILE."""

import base64
import json
import pathlib
import sys
import tomllib

import jsonschema

schema_file, file = map(pathlib.Path, sys.argv[1:3])
schema = json.loads(schema_file.read_bytes())
if file.suffix == ".toml":
    document = tomllib.loads(file.read_text())
else:
    document = json.loads(base64.b64decode(json.loads(file.read_bytes())["payload"], validate=True))
validator = jsonschema.Draft202012Validator(schema)
validator.check_schema(schema)
errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
print("\n".join(errors), file=sys.stderr)
sys.exit(1 if errors else 0)
