"""Submits a job as a part of what its caller does, and waits for its end: traced.py SOCKET TRACEPARENT."""

import sys
import uuid

import ampoule_client
from ampoule.v1 import job_pb2 as job
from ampoule.v1 import job_service_pb2 as jobs

client = ampoule_client.Client(ampoule_client.dial(f"unix://{sys.argv[1]}"), "traced")
step = job.Step(name="s", run=["true"], cwd="/build", timeout_ms=60_000)
request = jobs.SubmitJobRequest(
    idempotency_key=str(uuid.uuid4()),
    project="traced",
    job=job.JobRequest(
        ampoule=1,
        attempt=1,
        name="traced",
        profile="hermetic",
        image=job.Image(host=job.HostImage()),
        steps=[step],
    ),
)
answer = client.jobs.SubmitJob(request, metadata=(("traceparent", sys.argv[2]),))
for event in client.jobs.WatchJob(jobs.WatchJobRequest(job_id=answer.job.id, follow=True)):
    last = event
assert last.job.outcome == jobs.JOB_OUTCOME_SUCCEEDED, last
