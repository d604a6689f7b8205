"""A client of ampouled from the stubs that grpc_tools makes of proto/. It has no rules of its own: copy it, and change it.

    python -m grpc_tools.protoc -I proto --python_out=stubs --grpc_python_out=stubs proto/ampoule/v1/*.proto
    PYTHONPATH=stubs python examples/python/build.py --server unix:///run/ampoule/agent.sock ...
"""

import base64
import hashlib
import json
import pathlib
import time

import grpc
from ampoule.v1 import content_service_pb2 as content
from ampoule.v1 import content_service_pb2_grpc, job_service_pb2_grpc
from ampoule.v1 import job_service_pb2 as jobs
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2
from grpc_status import rpc_status

PART = 1 << 20  # the most bytes of one message of an upload
PAUSES = (0.2, 0.5, 1, 2, 5)
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.max_receive_message_length", 64 << 20),  # evidence
]


class Refused(Exception):
    """An error of the daemon with what its google.rpc details say."""

    def __init__(self, error: grpc.RpcError):
        super().__init__(error.details())
        self.status = error.code()
        self.reason = self.fault = self.retry_after = None
        self.fields = {}  # path of a field: what is wrong with it
        self.missing = []  # contents that have to be uploaded
        told = rpc_status.from_call(error)
        for detail in told.details if told else ():
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.RetryInfo,
                error_details_pb2.PreconditionFailure,
            ):
                message = kind()
                if detail.Unpack(message):
                    self._take(message)

    def _take(self, message):
        match message:
            case error_details_pb2.ErrorInfo():
                self.reason, self.fault = message.reason, message.metadata.get("fault")
            case error_details_pb2.BadRequest():
                self.fields = {one.field: one.description for one in message.field_violations}
            case error_details_pb2.RetryInfo():
                self.retry_after = message.retry_delay.ToTimedelta().total_seconds()
            case error_details_pb2.PreconditionFailure():
                self.missing = [one.subject for one in message.violations]


def wait(error: grpc.RpcError, failed: int) -> int:
    """Waits before the next try, if there is to be one: the daemon cannot be reached, or says when to ask again."""
    refused = Refused(error)
    if failed == len(PAUSES) or (refused.status != grpc.StatusCode.UNAVAILABLE and refused.retry_after is None):
        raise refused from error
    time.sleep(refused.retry_after or PAUSES[failed])
    return failed + 1


def dial(server: str, ca: str = "", certificate: str = "", key: str = "") -> grpc.Channel:
    """A local socket, unix:///run/ampoule/agent.sock, or HOST:PORT by TLS."""
    if server.startswith("unix:"):
        # Else grpcio sends the socket's path as the name of the host, which no HTTP/2 server may take.
        return grpc.insecure_channel(server, [*OPTIONS, ("grpc.default_authority", "localhost")])
    read = lambda name: pathlib.Path(name).read_bytes() if name else None
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(read(ca), read(key), read(certificate)), OPTIONS)


class Client:
    def __init__(self, channel: grpc.Channel, project: str):
        self.project = project
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.contents = content_service_pb2_grpc.ContentServiceStub(channel)

    def call(self, method, request):
        """Calls until there is an answer, or a refusal. Every call here may be made twice."""
        failed = 0
        while True:
            try:
                return method(request)
            except grpc.RpcError as error:
                failed = wait(error, failed)

    def upload(self, data: bytes, epoch: int, executable: bool = False) -> str:
        """Has a file's bytes in the project, and returns their digest. One that was cut short goes on where it ended."""
        sha256 = hashlib.sha256(data).hexdigest()
        ref = content.ContentRef(kind=content.CONTENT_KIND_FILE, sha256=sha256, epoch=epoch, executable=executable)
        which = content.FindMissingRequest(project=self.project, contents=[ref])
        if not self.call(self.contents.FindMissing, which).missing:
            return sha256

        def once(_):
            there = self.contents.GetUpload(content.GetUploadRequest(project=self.project, content=ref))
            return self.contents.Upload(parts(there.offset))

        def parts(offset):
            header = content.UploadHeader(project=self.project, content=ref, size_bytes=len(data), offset=offset)
            yield content.UploadRequest(header=header)
            for at in range(offset, len(data), PART):
                yield content.UploadRequest(data=data[at : at + PART])

        self.call(once, None)
        return sha256

    def submit(self, job, key: str, labels: dict[str, str] = {}) -> jobs.Job:
        """Submits a job, or finds the one that was submitted under this key."""
        request = jobs.SubmitJobRequest(idempotency_key=key, project=self.project, job=job, labels=labels)
        return self.call(self.jobs.SubmitJob, request).job

    def watch(self, job_id: str):
        """All that happens to a job until it is finished, each thing once, over connections that may be lost."""
        cursor, failed, finished = 0, 0, False
        while not finished:
            try:
                request = jobs.WatchJobRequest(job_id=job_id, after_cursor=cursor, logs=True, follow=True)
                # To the end of the stream: a job that was finished before is told of first, and then what led to it.
                for message in self.jobs.WatchJob(request):
                    cursor, failed = message.cursor, 0
                    yield message
                    if message.WhichOneof("event") == "job":
                        finished = message.job.state == jobs.JOB_STATE_FINISHED
            except grpc.RpcError as error:
                finished, failed = False, wait(error, failed)

    def download(self, job_id: str, output: str) -> bytes:
        """An output's bytes; those that were received are not asked for again."""
        data, failed = bytearray(), 0
        while True:
            try:
                request = jobs.DownloadOutputRequest(job_id=job_id, output=output, offset=len(data))
                for part in self.jobs.DownloadOutput(request):
                    assert part.offset == len(data), "bytes from another place"
                    data, failed = data + part.data, 0
                return bytes(data)
            except grpc.RpcError as error:
                failed = wait(error, failed)

    def evidence(self, job_id: str) -> dict[str, bytes]:
        """The files of a finished job's evidence by name."""
        files = self.call(self.jobs.GetAttestation, jobs.GetAttestationRequest(job_id=job_id)).files
        return {file.name: file.data for file in files}


def statement(envelope: bytes, public_key_pem: bytes) -> dict:
    """The statement in a DSSE envelope, if this key has signed it; cryptography.exceptions.InvalidSignature if not."""
    key = serialization.load_pem_public_key(public_key_pem)
    fields = json.loads(envelope)
    payload = base64.b64decode(fields["payload"], validate=True)
    kind = fields["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    for signature in fields["signatures"]:
        key.verify(base64.b64decode(signature["sig"], validate=True), signed, ec.ECDSA(hashes.SHA256()))
    if not fields["signatures"]:
        raise ValueError("nobody has signed")
    return json.loads(payload)
