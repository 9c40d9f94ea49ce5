"""Triton's own client, in a process with ours, against a server of ours.

It is not imported here: it defines messages that the server defines, too.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from loramux import Client
from tests.support.server import RunningServer

PROGRAM = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from loramux import Client
from loramux.v1 import generation_pb2

target = sys.argv[1]
server = triton.InferenceServerClient(target)
told = {}


def tensor(name, values, kind="BYTES"):
    array = np.array(values, dtype=object if kind == "BYTES" else bool)
    found = triton.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array)
    return found


told["server"] = [server.is_server_live(), server.is_server_ready()]
told["models"] = [server.is_model_ready(name) for name in ("tiny", "wide", "nobody")]
told["metadata"] = server.get_model_metadata("wide", as_json=True)["versions"]
greedy = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
only = tensor("exclude_input_in_output", [True], "BOOL")

texts = tensor("text_input", [[b"hello"], [b"you"]])
answer = server.infer("wide", [texts, only], request_id="one", parameters=greedy)
told["id"] = answer.get_response().id
told["texts"] = [text.decode() for (text,) in answer.as_numpy("text_output")]
told["counts"] = answer.as_numpy("num_output_tokens").tolist()

text = tensor("text_input", [b"hello"])
sampling = tensor("sampling_parameters", [json.dumps(greedy).encode()])
wanted = [triton.InferRequestedOutput("text_output")]
answer = server.infer("wide", [text, sampling, only], model_version="1", outputs=wanted)
told["alone"] = answer.as_numpy("text_output")[0].decode()
told["outputs"] = [output.name for output in answer.get_response().outputs]

try:
    server.infer("nobody", [text])
except triton.InferenceServerException as error:
    told["refused"] = [error.status(), error.message()]

answers = queue.Queue()
server.start_stream(lambda result, error: answers.put((result, error)))
inputs = [text, tensor("stream", [True], "BOOL")]
for name in ("wide", "rs", "nobody"):
    server.async_stream_infer(
        name, inputs, request_id=name, parameters=greedy, enable_empty_final_response=True
    )
pieces = {"wide": "", "rs": ""}
num_open, errors = 3, []
while num_open:
    result, error = answers.get(timeout=60)
    if error:
        errors.append(error.message())
        num_open -= 1
        continue
    response = result.get_response()
    pieces[response.id] += result.as_numpy("text_output")[0].decode()
    num_open -= response.parameters["triton_final_response"].bool_param
server.stop_stream()
told["pieces"], told["errors"] = pieces, errors
with Client(target) as ours:
    told["ours"] = ours.generate("hello", adapter="wide", **greedy).text
print(json.dumps(told))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed"
)
def test_tritons_client_calls_adapters_as_models(tiny_server: RunningServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_server.target],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    with Client(tiny_server.target) as client:
        made = {
            (name, text): client.generate(
                text, adapter=name, temperature=0.0, max_tokens=12, ignore_eos=True
            ).text
            for name, text in (("wide", "hello"), ("wide", "you"), ("rs", "hello"))
        }
    assert reported == {
        "server": [True, True],
        "models": [True, True, False],
        "metadata": ["1"],
        "id": "one",
        "texts": [made["wide", "hello"], made["wide", "you"]],
        "counts": [[12], [12]],
        "alone": made["wide", "hello"],
        "outputs": ["text_output"],
        "refused": ["StatusCode.NOT_FOUND", "adapter 'nobody' is not registered"],
        "pieces": {"wide": made["wide", "hello"], "rs": made["rs", "hello"]},
        "errors": ["NOT_FOUND: adapter 'nobody' is not registered"],
        "ours": made["wide", "hello"],
    }
