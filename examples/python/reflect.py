"""A client that has no proto files: it asks the daemon for its schema (grpc.reflection v1, or v1alpha) and calls what it finds.

    python examples/python/reflect.py unix:///run/ampoule/agent.sock
    python examples/python/reflect.py unix:///run/ampoule/agent.sock ampoule.v1.JobService/ListJobs '{"page_size": 10}'
"""

import argparse
import json
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status


def dial(socket: str) -> grpc.Channel:
    """A local socket. grpcio would send its path as the name of the host, which no HTTP/2 server may take."""
    return grpc.insecure_channel(socket, [("grpc.default_authority", "localhost")])


class Reflection(ProtoReflectionDescriptorDatabase):
    """The package speaks v1alpha; v1 is the same messages under another name."""

    def __init__(self, channel: grpc.Channel, version: str):
        super().__init__(channel)
        self._stub = self
        self.ServerReflectionInfo = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )


class Stranger:
    def __init__(self, channel: grpc.Channel, version: str = "v1"):
        self.channel = channel
        self.reflection = Reflection(channel, version)
        self.pool = descriptor_pool.DescriptorPool(self.reflection)

    def services(self) -> list[str]:
        return sorted(self.reflection.get_services())

    def methods(self, service: str) -> list[str]:
        return [method.name for method in self.pool.FindServiceByName(service).methods]

    def call(self, name: str, request: dict):
        """Calls ampoule.v1.JobService/GetJob with a request as JSON, and yields each answer as JSON."""
        service, _, method = name.partition("/")
        method = self.pool.FindServiceByName(service).FindMethodByName(method)
        given, answer = (message_factory.GetMessageClass(one) for one in (method.input_type, method.output_type))
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = kind(f"/{name}", request_serializer=given.SerializeToString, response_deserializer=answer.FromString)
        answers = call(json_format.ParseDict(request, given(), descriptor_pool=self.pool))
        for message in answers if method.server_streaming else [answers]:
            yield json_format.MessageToDict(
                message, preserving_proto_field_name=True, descriptor_pool=self.pool
            )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", choices=["v1", "v1alpha"], default="v1")
    parser.add_argument("server", help="unix:///run/ampoule/agent.sock")
    parser.add_argument("method", nargs="?", help="as ampoule.v1.JobService/ListJobs; none: what there is")
    parser.add_argument("request", nargs="?", default="{}")
    args = parser.parse_args()
    with dial(args.server) as channel:
        stranger = Stranger(channel, args.version)
        if not args.method:
            for service in stranger.services():
                print(service, *stranger.methods(service))
            return 0
        try:
            for answer in stranger.call(args.method, json.loads(args.request)):
                print(json.dumps(answer))
        except grpc.RpcError as error:
            details = rpc_status.from_call(error)
            print(error.code().name, error.details(), details and details.details, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
