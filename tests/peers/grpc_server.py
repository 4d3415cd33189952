"""A gRPC service with reflection, of the packages grpcio and grpcio-reflection, in a session."""

from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection

SERVICE = "casemate.peers.Words"

# What a compiler of .proto files would have made of:
#   message Text { string text = 1; }
#   service Words {
#     rpc Upper(Text) returns (Text);                   rpc Letters(Text) returns (stream Text);
#     rpc Join(stream Text) returns (Text);             rpc Talk(stream Text) returns (stream Text);
#     rpc Refuse(Text) returns (Text);
#   }
METHODS = {"Upper": (False, False), "Letters": (False, True), "Join": (True, False), "Talk": (True, True), "Refuse": (False, False)}
file = descriptor_pb2.FileDescriptorProto(name="words.proto", package="casemate.peers", syntax="proto3")
field = descriptor_pb2.FieldDescriptorProto
file.message_type.add(name="Text").field.add(name="text", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
words = file.service.add(name="Words")
for name, (takes, gives) in METHODS.items():
    text = ".casemate.peers.Text"
    words.method.add(name=name, input_type=text, output_type=text, client_streaming=takes, server_streaming=gives)
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
Text = message_factory.GetMessageClass(pool.FindMessageTypeByName("casemate.peers.Text"))


def upper(request, context):
    context.send_initial_metadata([("x-first", "early")])
    context.set_trailing_metadata([("x-last", "late")])
    return Text(text=request.text.upper())


def letters(request, _):
    for letter in request.text:
        yield Text(text=letter)


def join(requests, _):
    return Text(text="".join(request.text for request in requests))


def talk(requests, _):
    for request in requests:
        yield Text(text=f"you said {request.text}")


def refuse(request, context):
    # Without a word before it, the status is in the head of the answer; else in trailers.
    if request.text != "at once":
        context.send_initial_metadata([("x-first", "early")])
    context.set_trailing_metadata([("x-why", "told to"), ("x-bytes-bin", bytes(range(256)))])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"not „{request.text}“, 100 %")


def handler(name, takes, gives):
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[takes, gives]
    return make(globals()[name.lower()], request_deserializer=Text.FromString, response_serializer=Text.SerializeToString)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
handlers = {name: handler(name, *streams) for name, streams in METHODS.items()}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
server.add_insecure_port("127.0.0.1:8000")
server.start()
server.wait_for_termination()
