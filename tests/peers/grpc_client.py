"""A gRPC client, of the packages grpcio and grpcio-reflection, which learns by reflection what there is to call. It is told
what to do by lines of JSON on standard input; each is answered by a line.

  {"do": "open", "at", "authority", "key"}   to the service of that name, which is at this address; {}
  {"do": "services"}                         {"services": their methods}
  {"do": "upper", "text"}                    unary; {"text", "first": of the initial metadata, "last": of the trailing}
  {"do": "letters", "text"}                  a stream of answers; {"texts"}
  {"do": "join", "texts"}                    a stream of requests; {"text"}
  {"do": "talk", "text"}                     a message on a stream both ways, which stays open; {"text"}
  {"do": "hang-up"}                          ends it; {"code"}
  {"do": "refuse", "text"}                   {"code", "details", "why": of the trailing metadata, "bytes"}
"""

import json
import queue
import sys
from collections import namedtuple

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE_S = 50
SERVICE = "casemate.peers.Words"


class Details(namedtuple("Details", "method timeout metadata credentials wait_for_ready compression"), grpc.ClientCallDetails):
    """What an interceptor may change of a call."""


class Signed(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
             grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Says the key with every call."""

    def __init__(self, key):
        self.key = key

    def sign(self, proceed, details, request):
        details = Details(
            details.method, details.timeout or DEADLINE_S, [*(details.metadata or []), ("x-api-key", self.key)],
            details.credentials, details.wait_for_ready, details.compression)
        return proceed(details, request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = sign


class Client:
    def open(self, at, authority, key, **_):
        plain = grpc.insecure_channel(at, options=[("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)])
        self.channel = grpc.intercept_channel(plain, Signed(key)) if key else plain
        self.talking = None
        return {}

    def services(self):
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        pool = DescriptorPool(self.database)
        found = {}
        for name in self.database.get_services():
            service = pool.FindServiceByName(name)
            found[name] = [method.name for method in service.methods]
        self.service = pool.FindServiceByName(SERVICE)
        self.text = GetMessageClass(pool.FindMessageTypeByName("casemate.peers.Text"))
        return {"services": found}

    def call(self, name):
        method = self.service.FindMethodByName(name)
        kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
        answer = GetMessageClass(method.output_type)
        return getattr(self.channel, kind)(f"/{SERVICE}/{name}", GetMessageClass(method.input_type).SerializeToString, answer.FromString)

    def upper(self, text):
        answer, call = self.call("Upper").with_call(self.text(text=text), timeout=DEADLINE_S)
        return {"text": answer.text, "first": dict(call.initial_metadata()).get("x-first"), "last": dict(call.trailing_metadata()).get("x-last")}

    def letters(self, text):
        return {"texts": [answer.text for answer in self.call("Letters")(self.text(text=text), timeout=DEADLINE_S)]}

    def join(self, texts):
        return {"text": self.call("Join")((self.text(text=text) for text in texts), timeout=DEADLINE_S).text}

    def talk(self, text):
        if self.talking is None:
            self.requests = queue.Queue()
            self.talking = self.call("Talk")(iter(self.requests.get, None), timeout=2 * DEADLINE_S)
        self.requests.put(self.text(text=text))
        return {"text": next(self.talking).text}

    def hang_up(self):
        self.requests.put(None)
        assert list(self.talking) == []
        return {"code": self.talking.code().name}

    def refuse(self, text):
        try:
            self.call("Refuse")(self.text(text=text), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            trailing = dict(error.trailing_metadata())
            return {"code": error.code().name, "details": error.details(), "why": trailing.get("x-why"),
                    "bytes": list(trailing.get("x-bytes-bin", b""))}
        return {}


client = Client()
for line in sys.stdin:
    command = json.loads(line)
    do = command.pop("do").replace("-", "_")
    try:
        print(json.dumps(getattr(client, do)(**command)), flush=True)
    except grpc.RpcError as error:
        print(json.dumps({"code": error.code().name, "details": error.details()}), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
