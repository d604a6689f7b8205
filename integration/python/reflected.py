"""What a client without our schema can do, by either version of reflection: reflected.py SOCKET."""

import base64
import sys
import uuid

import grpc
from reflect import Stranger, dial

OURS = {"ampoule.v1.JobService", "ampoule.v1.ContentService", "ampoule.v1.HostService"}


def run(version: str):
    with dial(f"unix://{sys.argv[1]}") as channel:
        stranger = Stranger(channel, version)
        services = set(stranger.services())
        assert OURS | {"grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= services, services
        assert "SubmitJob" in stranger.methods("ampoule.v1.JobService")
        (health,) = stranger.call("grpc.health.v1.Health/Check", {})
        assert health["status"] == "SERVING", health
        step = {"name": "s", "run": ["sh", "-c", "echo seen"], "cwd": "/build", "timeout_ms": 10000}
        job = {"ampoule": 1, "attempt": 1, "name": "reflected", "profile": "hermetic", "image": {"host": {}}, "steps": [step]}
        request = {"idempotency_key": str(uuid.uuid4()), "project": "stranger", "job": job}
        (answer,) = stranger.call("ampoule.v1.JobService/SubmitJob", request)
        watch = {"job_id": answer["job"]["id"], "logs": True, "follow": True}
        events = list(stranger.call("ampoule.v1.JobService/WatchJob", watch))
        assert events[-1]["job"]["outcome"] == "JOB_OUTCOME_SUCCEEDED", events[-1]
        log = b"".join(base64.b64decode(event["log"]["data"]) for event in events if "log" in event)
        assert log == b"seen\n", log
        (answer,) = stranger.call("ampoule.v1.JobService/GetAttestation", {"job_id": events[-1]["job"]["id"]})
        assert "run.intoto.jsonl" in [file["name"] for file in answer["files"]]
        try:
            list(stranger.call("ampoule.v1.JobService/GetJob", {"job_id": "none"}))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            return
        raise AssertionError("a job id that is none was taken")


for version in ("v1", "v1alpha"):
    run(version)
print("both of them")
