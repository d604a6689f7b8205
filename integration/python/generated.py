"""What a client of generated stubs can do: generated.py SOCKET PUBLIC_KEY SCRATCH."""

import pathlib
import sys
import uuid

import ampoule_client
import grpc
from ampoule.v1 import content_service_pb2 as content
from ampoule.v1 import job_pb2 as job
from ampoule.v1 import job_service_pb2 as jobs
from cryptography.exceptions import InvalidSignature
from cuts import Cuts

SOCKET, KEY, SCRATCH = sys.argv[1], pathlib.Path(sys.argv[2]).read_bytes(), pathlib.Path(sys.argv[3])
EPOCH = 1700000000
PROJECT = "stranger"


def client(name: str = "", after: list[int] = []) -> tuple[ampoule_client.Client, Cuts | None]:
    cuts = Cuts(SCRATCH / f"{name}.sock", SOCKET, list(after)) if after else None
    channel = ampoule_client.dial(cuts.server if cuts else f"unix://{SOCKET}")
    return ampoule_client.Client(channel, PROJECT), cuts


def request(script: str, *inputs: job.Input, outputs: tuple[str, ...] = (), **more) -> job.JobRequest:
    steps = [job.Step(name="s", run=["sh", "-euc", script], cwd="/build", timeout_ms=60_000)]
    return job.JobRequest(
        ampoule=1,
        attempt=1,
        name="stranger",
        profile="hermetic",
        image=job.Image(host=job.HostImage()),
        source_date_epoch=EPOCH,
        inputs=inputs,
        steps=steps,
        outputs=[job.Output(name=name, path=f"/build/{name}") for name in outputs],
        **more,
    )


def uploads_go_on_where_they_were_cut() -> job.Input:
    data = bytes(range(256)) * (3 << 12)  # 3 MiB
    cut, cuts = client("upload", [2 << 20])
    offsets, ask = [], cut.contents.GetUpload
    cut.contents.GetUpload = lambda which: (answer := ask(which), offsets.append(answer.offset))[0]
    sha256 = cut.upload(data, EPOCH)
    assert cuts.cut == 1 and offsets[0] == 0 and offsets[-1] > 0, (cuts.cut, offsets)
    direct, _ = client()
    ref = content.ContentRef(kind=content.CONTENT_KIND_FILE, sha256=sha256, epoch=EPOCH)
    ask = lambda project: direct.contents.FindMissing(content.FindMissingRequest(project=project, contents=[ref]))
    assert not ask(PROJECT).missing
    assert list(ask("somebody-else").missing) == [ref], "another project has it too"
    return job.Input(name="data", mount="/build/data", file=job.FileSource(sha256=sha256))


def whole_job_over_lost_connections(data: job.Input):
    script = "cp data copy; i=0; while [ $i -lt 20000 ]; do echo line $i of a log that is cut; i=$((i+1)); done; echo err >&2"
    cut, cuts = client("watch", [30_000, 100_000, 200_000])
    key = str(uuid.uuid4())
    submitted = cut.submit(request(script, data, outputs=("copy",)), key, {"from": "python"})
    assert cut.submit(request(script, data, outputs=("copy",)), key, {"from": "python"}).id == submitted.id
    streams, states, cursor = {}, [], 0
    for message in cut.watch(submitted.id):
        assert message.cursor >= cursor
        cursor = message.cursor
        match message.WhichOneof("event"):
            case "log":
                stream = streams.setdefault(message.log.stream, bytearray())
                assert message.log.offset == len(stream), "a byte is missing, or came twice"
                stream += message.log.data
            case "job":
                states.append(message.job.state)
                end = message.job
    assert cuts.cut == 3, cuts.cut
    expected = b"".join(b"line %d of a log that is cut\n" % n for n in range(20000))
    lengths = {stream: len(data) for stream, data in streams.items()}
    assert streams == {jobs.LOG_STREAM_STDOUT: expected, jobs.LOG_STREAM_STDERR: b"err\n"}, (lengths, len(expected))
    assert states[-1] == jobs.JOB_STATE_FINISHED and end.outcome == jobs.JOB_OUTCOME_SUCCEEDED, end
    # Again from somewhere in the middle, after the end.
    direct, _ = client()
    again = jobs.WatchJobRequest(job_id=end.id, after_cursor=cursor, logs=True, follow=True)
    assert [message.WhichOneof("event") for message in direct.jobs.WatchJob(again)][-1] == "job"
    assert direct.jobs.GetJob(jobs.GetJobRequest(job_id=end.id)).job == end
    listed = direct.jobs.ListJobs(jobs.ListJobsRequest(project=PROJECT, labels={"from": "python"})).jobs
    assert [one.id for one in listed] == [end.id]
    evidence_and_output(end)


def evidence_and_output(end: jobs.Job):
    cut, cuts = client("download", [200_000, 1_000_000])
    evidence = cut.evidence(end.id)
    run = ampoule_client.statement(evidence["run.intoto.jsonl"], KEY)
    assert run["_type"] == "https://in-toto.io/Statement/v1", run["_type"]
    provenance = ampoule_client.statement(evidence["copy.intoto.jsonl"], KEY)
    assert provenance["predicateType"] == "https://slsa.dev/provenance/v1"
    data = bytes(range(256)) * (3 << 12)
    assert cut.download(end.id, "copy") == data
    assert cuts.cut == 2, cuts.cut
    (subject,) = provenance["subject"]
    assert subject["digest"]["sha256"] == end.outputs[0].sha256 == ampoule_client.hashlib.sha256(data).hexdigest()
    forged = evidence["run.intoto.jsonl"].replace(b'"payload":"ey', b'"payload":"eY', 1)
    assert forged != evidence["run.intoto.jsonl"]
    try:
        ampoule_client.statement(forged, KEY)
    except InvalidSignature:
        return
    raise AssertionError("a changed payload verifies")


def cancel_ends_a_job():
    direct, _ = client()
    submitted = direct.submit(request("echo begun; sleep 600"), str(uuid.uuid4()))
    for message in direct.watch(submitted.id):
        if message.WhichOneof("event") == "log":
            wish = jobs.CancelJobRequest(job_id=submitted.id, reason="enough")
            assert direct.jobs.CancelJob(wish).job.cancel_requested
    assert (message.job.outcome, message.job.code) == (jobs.JOB_OUTCOME_CANCELLED, "job.cancelled"), message
    run = ampoule_client.statement(direct.evidence(submitted.id)["run.intoto.jsonl"], KEY)
    assert "job.cancelled" in str(run["predicate"])


def refused(call) -> ampoule_client.Refused:
    try:
        call()
    except ampoule_client.Refused as error:
        return error
    raise AssertionError("it was not refused")


def errors_say_what_is_wrong():
    direct, _ = client()
    submit = lambda what, key=None: direct.submit(what, key or str(uuid.uuid4()))
    bad = request("true")
    bad.steps[0].cwd = "not/absolute"
    error = refused(lambda: submit(bad))
    assert (error.status, error.reason, error.fault) == (grpc.StatusCode.INVALID_ARGUMENT, "job.invalid", "tenant")
    assert "job.steps[0].cwd" in error.fields, error.fields
    absent = job.Input(name="absent", mount="/build/x", file=job.FileSource(sha256="0" * 64))
    error = refused(lambda: submit(request("true", absent)))
    assert (error.status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "content.missing")
    assert any("0" * 64 in one for one in error.missing), error.missing
    key = str(uuid.uuid4())
    submit(request("true"), key)
    error = refused(lambda: submit(request("false"), key))
    assert (error.status, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "job.key_reused")
    nobody = "01980000-0000-7000-8000-000000000001"
    error = refused(lambda: direct.call(direct.jobs.GetJob, jobs.GetJobRequest(job_id=nobody)))
    assert (error.status, error.reason) == (grpc.StatusCode.NOT_FOUND, "job.unknown")


data = uploads_go_on_where_they_were_cut()
whole_job_over_lost_connections(data)
cancel_ends_a_job()
errors_say_what_is_wrong()
print("all of it")
