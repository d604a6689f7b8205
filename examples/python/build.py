"""Compiles a C file on a build host, and has the program here once its provenance is verified.

    PYTHONPATH=stubs python examples/python/build.py --server unix:///run/ampoule/agent.sock --project app \\
        --key builder.pub --out DIR hello.c
"""

import argparse
import hashlib
import pathlib
import sys
import uuid

import ampoule_client
from ampoule.v1 import job_pb2 as job
from ampoule.v1 import job_service_pb2 as jobs

EPOCH = 1700000000

parser = argparse.ArgumentParser()
parser.add_argument("--server", default="unix:///run/ampoule/agent.sock")
parser.add_argument("--ca", default="", help="authorities of the daemon's certificate (PEM)")
parser.add_argument("--certificate", default="", help="the client's certificate (PEM)")
parser.add_argument("--private-key", default="", help="its key (PEM)")
parser.add_argument("--project", required=True)
parser.add_argument("--key", required=True, type=pathlib.Path, help="the builder's public key, from its operator (PEM)")
parser.add_argument("--idempotency-key", default=str(uuid.uuid4()), help="the same one attaches to the same job")
parser.add_argument("--out", required=True, type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
args = parser.parse_args()

channel = ampoule_client.dial(args.server, args.ca, args.certificate, args.private_key)
client = ampoule_client.Client(channel, args.project)
request = job.JobRequest(
    ampoule=1,
    attempt=1,
    name="compile",
    profile="hermetic",
    image=job.Image(host=job.HostImage()),
    source_date_epoch=EPOCH,
    inputs=[
        job.Input(
            name="source",
            mount="/build/main.c",
            file=job.FileSource(sha256=client.upload(args.source.read_bytes(), EPOCH)),
        )
    ],
    steps=[job.Step(name="cc", run=["cc", "-O2", "-Wall", "-o", "program", "main.c"], cwd="/build", timeout_ms=600_000)],
    outputs=[job.Output(name="program", path="/build/program")],
)
submitted = client.submit(request, args.idempotency_key)
print(f"job {submitted.id}", file=sys.stderr)
for message in client.watch(submitted.id):
    match message.WhichOneof("event"):
        case "log":
            # repr: control bytes and what CI systems take for commands stay harmless.
            print(f"cc | {message.log.data!r}", file=sys.stderr)
        case "job":
            end = message.job

evidence, key = client.evidence(end.id), args.key.read_bytes()
run = ampoule_client.statement(evidence["run.intoto.jsonl"], key)
print(f"{jobs.JobOutcome.Name(end.outcome)} {end.code} {end.message}".strip(), file=sys.stderr)
if end.outcome != jobs.JOB_OUTCOME_SUCCEEDED:
    sys.exit(end.exit_code or 70)
provenance = ampoule_client.statement(evidence["program.intoto.jsonl"], key)
program = client.download(end.id, "program")
subjects = {subject["name"]: subject["digest"]["sha256"] for subject in provenance["subject"]}
if subjects["program"] != hashlib.sha256(program).hexdigest():
    sys.exit("what was downloaded is not what was signed")
args.out.mkdir(parents=True)
(args.out / "program").write_bytes(program)
(args.out / "program.intoto.jsonl").write_bytes(evidence["program.intoto.jsonl"])
print(provenance["predicate"]["runDetails"]["builder"]["id"], file=sys.stderr)
