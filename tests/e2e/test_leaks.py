"""What nobody is told: prompts, keys, paths, addresses, and what other tenants have.

Calls of every kind, good and bad, hold words that exist nowhere else. Then all that the server said
(statuses, logs, the audit log, metrics and traces) is searched for them.
"""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from loramux.v1 import (
    adapters_pb2,
    aliases_pb2,
    embedding_pb2,
    generation_pb2,
    quarantine_pb2,
    question_answering_pb2,
    residency_pb2,
    tokenization_pb2,
    uploads_pb2,
)
from loramux_server.access.caller import Role
from loramux_server.access.key import new_key
from tests.support.access import Outcome, call
from tests.support.observed import OTHER, SECRET, STORE_SECRET, Observed
from tests.support.open_inference import asking
from tests.support.packages import packed
from tests.support.wire import chunks, upload_header

V1 = "/loramux.v1"
UNARY, UPLOADS, STREAMS = (False, False), (True, False), (False, True)

PROMPT = "canary-of-the-prompt"
WORD = "canary-of-a-field"
"""In what the caller may be told again, and nobody else."""
THEIRS = "canary-of-others"
"""What another tenant calls its adapter."""
CONTENT = "canary-of-the-package"
"""In the bytes of uploads."""

FORBIDDEN = {
    "a prompt": re.compile(PROMPT),
    "content of files": re.compile(f"{SECRET}|{CONTENT}"),
    "credentials of a source": re.compile(STORE_SECRET),
    "a path": re.compile(r"(?<![\w.:/])/(?:home|tmp|etc|usr|work|var|root|proc|dev)\b"),
    "an address": re.compile(r"\d+\.\d+\.\d+\.\d+:\d+|ipv[46]:|\[::1\]|localhost"),
    "a place in memory": re.compile(r"\b0x[0-9a-fA-F]{6,}"),
    "a traceback": re.compile(r"Traceback|File \"|\.py\b"),
}
"""What no text of any kind may hold."""


def leaks(text: str, *secrets: str) -> list[str]:
    """Return what `text` tells that it should not, beside `secrets`."""
    found = [
        f"{what}: …{text[max(0, match.start() - 60) : match.end() + 60]}…"
        for what, pattern in FORBIDDEN.items()
        for match in pattern.finditer(text)
    ]
    return found + [f"{secret[:12]}…" for secret in secrets if secret in text]


@pytest.mark.parametrize("text", [
    f"prompt is {PROMPT!r}", SECRET, f"token {STORE_SECRET}", "no such file: /tmp/x", "/etc/passwd",
    "peer ipv4:127.0.0.1:4444", "connect to 10.0.0.1:80 failed", "<Model at 0x7f1234567890>",
    'File "a.py", line 3', "localhost:1",
])  # fmt: skip
def test_secrets_are_recognized(text: str) -> None:
    assert leaks(text)


def test_what_is_no_secret_is_passed_over() -> None:
    fine = "adapter 'acme/poet:1' (sha256:0123abcd) is not registered; expected at most 8 / 9"
    assert leaks(fine, "secret") == []
    assert leaks("a secret", "secret")


@dataclass
class Said:
    """Everything that the server said."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    log: str = ""
    audit: str = ""
    metrics: str = ""
    spans: str = ""
    secrets: list[str] = field(default_factory=list)
    """The secret parts of every key that was shown, and of what only looks like one."""

    def status(self, name: str) -> str:
        """Return every byte that came with the status of a call."""
        outcome = self.outcomes[name]
        values = [
            value if isinstance(value, str) else value.decode("latin-1")
            for _, value in outcome.metadata
        ]
        return "\n".join([outcome.message, *values])


def generate(**fields: Any) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(**{"max_tokens": 2, **fields.pop("sampling", {})})
    asked = fields if "messages" in fields else {"prompt": PROMPT} | fields
    return generation_pb2.GenerateRequest(sampling=sampling, **asked)


def chat(role: str = "user") -> generation_pb2.GenerateRequest:
    return generate(messages=[generation_pb2.ChatMessage(role=role, content=PROMPT)])


def generations() -> Iterator[tuple[str, generation_pb2.GenerateRequest]]:
    """Yield requests to generate, by what is wrong with them."""
    yield "nothing", generate(adapter="public/small")
    yield "nothing, base", generate(request_id="scanned")
    yield (
        "a mix",
        generate(
            adapters=[
                generation_pb2.WeightedAdapter(adapter=f"public/{name}", weight=0.5)
                for name in ("small", "wide")
            ]
        ),
    )
    yield "chat", chat()
    yield "a role", chat(role=WORD)
    yield "two prompts", generate(prompt_token_ids=[1])
    yield "a long prompt", generate(prompt=PROMPT * 100)
    yield "a huge prompt", generate(prompt=PROMPT * 15_000)
    yield "a token", generate(prompt="", prompt_token_ids=[9999])
    yield "a prediction", generate(prediction=PROMPT)
    yield "a huge prediction", generate(prediction=PROMPT * 15_000)
    yield "two predictions", generate(prediction=PROMPT, prediction_token_ids=[1])
    yield "a temperature", generate(sampling={"temperature": -1.0})
    yield "a form", generate(sampling={"structured_output": {"choice": {"texts": [PROMPT]}}})
    yield "no form", generate(sampling={"structured_output": {"regex": f"{PROMPT}("}})
    rules = [f"r{number}: r{number + 1}" for number in range(5000)]
    lost = "\n".join(["start: r0", *rules, f'r5000: "{PROMPT}"'])
    yield "a form that is lost", generate(sampling={"structured_output": {"grammar": lost}})
    yield "a stop string", generate(sampling={"stop": [WORD * 100]})
    yield "a routing key", generate(routing_key=WORD * 100)
    yield "an id", generate(request_id=f"{WORD}\n")
    yield "an unknown adapter", generate(adapter=WORD)
    yield "a path as adapter", generate(adapter=f"../../{WORD}")
    yield "an unknown version", generate(adapter="public/small:99")
    yield "an unknown digest", generate(adapter=f"public/small@sha256:{'0' * 64}")
    yield "another tenant's adapter", generate(adapter=f"{OTHER}/{WORD}")
    yield "no time", generate(sampling={"max_tokens": 100, "ignore_eos": True})


def others(package: bytes, other: bytes) -> Iterator[tuple[str, str, list[Any], tuple[bool, bool]]]:
    """Yield calls of other methods: what of them is special, path, messages, and kind."""
    adapters, aliases = f"{V1}.AdapterService", f"{V1}.AliasService"
    for adapter in ("", "public/small", WORD):
        text = embedding_pb2.EmbedInput(text=PROMPT)
        embed = embedding_pb2.EmbedRequest(adapter=adapter, inputs=[text])
        written = generation_pb2.GenerateRequest(adapter=adapter, prompt=PROMPT)
        tokens = tokenization_pb2.TokenizeRequest(request=written)
        yield f"tokenize by {adapter}", f"{V1}.TokenizationService/Tokenize", [tokens], UNARY
        yield f"embed by {adapter}", f"{V1}.EmbeddingService/Embed", [embed], UNARY
        pair = question_answering_pb2.QuestionInput(question=PROMPT, context=PROMPT)
        ask = question_answering_pb2.AnswerRequest(adapter=adapter, inputs=[pair])
        yield f"answer by {adapter}", f"{V1}.QuestionAnsweringService/Answer", [ask], UNARY
        infer = asking(adapter, PROMPT, parameters={"max_tokens": 2})
        yield f"infer by {adapter}", "/inference.GRPCInferenceService/ModelInfer", [infer], UNARY
    good = [upload_header("scanned", package), *chunks(package)]
    yield "upload", f"{adapters}/UploadAdapter", good, UPLOADS
    damaged = CONTENT.encode() * 10
    bad = [upload_header("scanned2", damaged), *chunks(damaged)]
    yield "upload no package", f"{adapters}/UploadAdapter", bad, UPLOADS
    header = b'{"' + CONTENT.encode() + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    tensors = len(header).to_bytes(8, "little") + header + bytes(4)
    bad = [upload_header("scanned2", tensors), *chunks(tensors)]
    yield "upload no manifest", f"{adapters}/UploadAdapter", bad, UPLOADS
    bad = [upload_header("scanned2", package, sha256="0" * 64), *chunks(package)]
    yield "upload a wrong digest", f"{adapters}/UploadAdapter", bad, UPLOADS
    bad = [upload_header(f"/srv/{WORD}", package), *chunks(package)]
    yield "upload a path", f"{adapters}/UploadAdapter", bad, UPLOADS
    bad = [upload_header("public/scanned", package), *chunks(package)]
    yield "upload for all", f"{adapters}/UploadAdapter", bad, UPLOADS
    bad = [upload_header("scanned", other, must_not_exist=True), *chunks(other)]
    yield "upload again", f"{adapters}/UploadAdapter", bad, UPLOADS
    for name in ("scanned", WORD, f"{OTHER}/{WORD}"):
        asked = adapters_pb2.DownloadAdapterRequest(name=name)
        yield f"download {name}", f"{adapters}/DownloadAdapter", [asked], STREAMS
    late = adapters_pb2.DownloadAdapterRequest(name="scanned", offset=1 << 40)
    yield "download beyond", f"{adapters}/DownloadAdapter", [late], STREAMS
    for uri in (
        f"file:///srv/{WORD}", f"http://10.0.0.1/{WORD}", f"hf://{WORD}/x", f"hf://../{WORD}",
        "hf://acme/missing", f"hf://acme/x@{WORD}/../..", "s3://acme/missing.safetensors",
        f"s3://{WORD}/x", f"s3://acme/../{WORD}", f"gs://{WORD}/x", "", WORD,
    ):  # fmt: skip
        bring = adapters_pb2.ImportAdapterRequest(name="imported", uri=uri)
        yield f"import {uri}", f"{adapters}/ImportAdapter", [bring], UNARY
    split = aliases_pb2.Split(weights={1: 1})
    for name, alias in (("scanned", "stable"), (WORD, "stable"), ("scanned", "LATEST !")):
        move = aliases_pb2.SetAliasRequest(name=name, alias=alias, split=split, moved_by=WORD)
        yield f"alias {name} {alias}", f"{aliases}/SetAlias", [move], UNARY
    back = aliases_pb2.RollBackAliasRequest(name="scanned", alias="stable")
    yield "roll back", f"{aliases}/RollBackAlias", [back], UNARY
    moves = aliases_pb2.ListAliasMovesRequest(name="scanned", page_token=WORD)
    yield "alias log", f"{aliases}/ListAliasMoves", [moves], UNARY
    page = adapters_pb2.ListAdaptersRequest(page_token=WORD)
    yield "list a page", f"{adapters}/ListAdapters", [page], UNARY
    page = adapters_pb2.ListAdaptersRequest(tenant=OTHER)
    yield "list another tenant", f"{adapters}/ListAdapters", [page], UNARY
    pin = residency_pb2.PinAdapterRequest(name="scanned")
    yield "pin", f"{V1}.ResidencyService/PinAdapter", [pin], UNARY
    clear = quarantine_pb2.ClearQuarantinedRequest(key=WORD)
    yield "clear", f"{V1}.QuarantineService/ClearQuarantined", [clear], UNARY
    begin = uploads_pb2.StartUploadRequest(
        header=adapters_pb2.UploadHeader(name="part", size_bytes=-1, sha256=WORD)
    )
    yield "start", f"{V1}.UploadService/StartUpload", [begin], UNARY
    finish = uploads_pb2.FinishUploadRequest(upload_id=WORD)
    yield "finish", f"{V1}.UploadService/FinishUpload", [finish], UNARY
    piece = uploads_pb2.SendChunksRequest(upload_id="f" * 32, chunk=CONTENT.encode())
    yield "send", f"{V1}.UploadService/SendChunks", [piece], UPLOADS
    yield "no such method", f"{V1}.AdapterService/{WORD}", [pin], UNARY
    gone = adapters_pb2.DeleteAdapterRequest(name="scanned")
    yield "delete", f"{adapters}/DeleteAdapter", [gone], UNARY


@pytest.fixture(scope="module")
def said(observed: Observed, tiny_adapters: Any) -> Said:
    said = Said()
    package, other = (packed(tiny_adapters / name) for name in ("small", "wide"))
    keys = {name: key.text for name, key in observed.keys.items()}
    stranger = new_key().text
    altered = keys[Role.USER][:-43] + stranger[-43:]
    wrong = {"stranger": stranger, "altered": altered, "revoked": keys["revoked"],
             "junk": "canary-of-no-key", "empty": "", "long": "lmx_" + "canary" * 100}  # fmt: skip
    said.secrets = [text[-43:] for text in (*keys.values(), stranger)]
    said.secrets += ["canary-of-no-key", "canary" * 100]
    with grpc.insecure_channel(observed.server.target) as channel:

        def made(
            name: str, path: str, messages: list[Any], key: str | None, kind: tuple[bool, bool],
            seconds: float = 60,
        ) -> None:  # fmt: skip
            assert name not in said.outcomes
            said.outcomes[name] = call(channel, path, messages, key, streams=kind, timeout=seconds)

        theirs = [upload_header(THEIRS, package), *chunks(package)]
        made("theirs", f"{V1}.AdapterService/UploadAdapter", theirs, keys[OTHER], UPLOADS)
        for name, request in generations():
            seconds = 0.02 if name == "no time" else 60
            path = f"{V1}.GenerationService/Generate"
            made(f"generate: {name}", path, [request], keys[Role.USER], UNARY, seconds)
        for name, path, messages, kind in others(package, other):
            made(name, path, messages, keys[Role.PUBLISHER], kind)
        for name, path, messages, kind in others(package, other):
            made(f"as user: {name}", path, messages, keys[Role.USER], kind)
        for name, key in {**wrong, "none": None}.items():
            path = f"{V1}.GenerationService/StreamGenerate"
            made(f"key: {name}", path, [generate()], key, STREAMS)
        # The bytes of a request that is none.
        junk: Any = channel.unary_unary(f"{V1}.GenerationService/Generate")
        with pytest.raises(grpc.RpcError):
            junk(b"\xff" + PROMPT.encode(), metadata=(("authorization", f"Bearer {stranger}"),))
    # What is no method has no span, what had no time may not have come, and the junk has one.
    codes = [outcome.code for outcome in said.outcomes.values()]
    num_calls = 1 + len(codes) - codes.count(grpc.StatusCode.UNIMPLEMENTED)
    num_calls -= codes.count(grpc.StatusCode.DEADLINE_EXCEEDED)
    observed.collector.wait(
        lambda spans: sum("rpc.method" in s.attributes for s in spans) >= num_calls
    )
    said.log = observed.server.log.read_text()
    said.audit = observed.audit.read_text()
    with urllib.request.urlopen(f"http://{observed.server.metrics_target}/metrics") as page:
        said.metrics = page.read().decode()
    said.spans = "\n".join(span.text for span in observed.collector.spans)
    return said


def test_the_calls_were_of_every_kind(said: Said) -> None:
    codes = {outcome.code.name for outcome in said.outcomes.values()}
    assert codes >= {
        "OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED",
        "ALREADY_EXISTS", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED",
    }  # fmt: skip
    assert "INTERNAL" not in codes
    assert "UNKNOWN" not in codes
    assert said.outcomes["theirs"].code is grpc.StatusCode.OK
    assert said.outcomes["generate: nothing"].code is grpc.StatusCode.OK
    assert len(said.outcomes) > 80


def test_no_status_reveals_secrets(said: Said) -> None:
    # What the caller wrote itself is not news to it.
    own = re.compile(r"(?:file|http)://\S*|/tmp/" + WORD + r"|\.\./\.\./" + WORD)
    found = {
        name: leaks(own.sub("", said.status(name)), THEIRS, *said.secrets) for name in said.outcomes
    }
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("where", ["log", "audit", "metrics", "spans"])
def test_nothing_stored_reveals_secrets(said: Said, where: str) -> None:
    text = getattr(said, where)
    assert len(text) > 1000
    # Where it serves is said once, to who started it.
    lines = [line for line in text.splitlines() if not re.search(r"\bserv(?:es|ing)\b.* on ", line)]
    assert leaks("\n".join(lines), *said.secrets) == []


@pytest.mark.parametrize("where", ["metrics", "spans"])
def test_words_of_a_bad_request_go_to_its_caller_alone(said: Said, where: str) -> None:
    assert WORD in "".join(map(said.status, said.outcomes))
    assert WORD not in getattr(said, where)
