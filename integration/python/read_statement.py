"""Read an envelope's statement with in-toto-attestation: read_statement.py ENVELOPE."""

import base64
import json
import pathlib
import sys

from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1 import statement_pb2

envelope = json.loads(pathlib.Path(sys.argv[1]).read_bytes())
payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
statement = Statement.copy_from_pb(json_format.ParseDict(payload, statement_pb2.Statement()))
statement.validate()
print("predicate", statement.pb.predicate_type)
for subject in statement.pb.subject:
    print("subject", subject.name, subject.digest["sha256"])
if statement.pb.predicate_type == "https://slsa.dev/provenance/v1":
    # No unknown field is ignored.
    provenance = json_format.ParseDict(payload["predicate"], provenance_pb2.Provenance())
    print("builder", provenance.run_details.builder.id)
    print("build type", provenance.build_definition.build_type)
