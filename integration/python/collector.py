"""A collector of traces: collector.py FILE PORT [CERTIFICATE KEY]. Writes each span as a line of JSON."""

import concurrent.futures
import json
import pathlib
import sys
import threading

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

FILE, ADDRESS = pathlib.Path(sys.argv[1]), f"127.0.0.1:{sys.argv[2]}"
TLS = [pathlib.Path(path).read_bytes() for path in sys.argv[3:]]


def plain(attributes):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector(service.TraceServiceServicer):
    lock = threading.Lock()

    def Export(self, request, context):
        lines = []
        for resource in request.resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                of = {
                    "resource": plain(resource.resource.attributes),
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": int(span.kind),
                    "begun": span.start_time_unix_nano,
                    "ended": span.end_time_unix_nano,
                    "status": int(span.status.code),
                    "attributes": plain(span.attributes),
                }
                lines.append(json.dumps(of))
        with self.lock, FILE.open("a") as file:
            file.writelines(line + "\n" for line in lines)
        return trace.ExportTraceServiceResponse()


server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
service.add_TraceServiceServicer_to_server(Collector(), server)
if TLS:
    server.add_secure_port(ADDRESS, grpc.ssl_server_credentials([(TLS[1], TLS[0])]))
else:
    server.add_insecure_port(ADDRESS)
server.start()
print("listening", file=sys.stderr, flush=True)
server.wait_for_termination()
