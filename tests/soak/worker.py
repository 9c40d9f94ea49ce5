"""One client of a server, and what it does: each thing has to go as it went before."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux import Client, Image
from loramux._wire import raising
from loramux.errors import InvalidArgumentError, LoramuxError, NotFoundError
from loramux.types import Message
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux_server.wire.model_kind import ModelKind
from tests.soak import other_apis
from tests.soak.loop import Loop
from tests.soak.refused import refused
from tests.support.pictures import picture, saved
from tests.support.server import RunningServer
from tests.support.wire import GENERATE, chunks, send, upload_header

TIMEOUT = 60.0
WORDS = ("cat ->", "window ->", "seven ->")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
TOLERANCE = 1e-3
"""By which the log-probability of a token may differ, told of what was made and of a prompt."""


@dataclass(frozen=True)
class Setting:
    """What there is to be used."""

    adapters: Sequence[str]
    packages: Sequence[Path]
    """Two at least, none of them what one of `adapters` is."""
    chats: str | None = None
    """An adapter whose chat template knows of tools, if there is one."""
    labels: str | None = None
    """An adapter that classifies texts, if there is one."""
    spans: str | None = None
    """An adapter that finds answers in texts, likewise."""
    tags: str | None = None
    """An adapter that labels tokens, likewise."""
    shows: bool = False
    """Whether the base sees images."""
    kind: ModelKind = ModelKind.DECODER
    """What the base makes of texts."""
    max_tokens: int = 120
    pause: float = 2.0
    """Seconds that a slow reader does not read."""


class Worker:
    """One client; its methods are the kinds of `mix.WEIGHTS`, and raise if something is amiss."""

    def __init__(
        self,
        server: RunningServer,
        client: Client,
        setting: Setting,
        choice: random.Random,
        names: Iterator[str],
        loop: Loop,
    ) -> None:
        self._server = server
        self._client = client
        self._setting = setting
        self._choice = choice
        self._names = names
        self._loop = loop

    def stream(self, adapter: str | None) -> None:
        """Read a stream to its end."""
        count = self._choice.randint(1, self._setting.max_tokens)
        tokens: tuple[int, ...] = ()
        for chunk in self._open(adapter, max_tokens=count):
            tokens += chunk.token_ids
        assert len(tokens) == count, f"{len(tokens)} tokens in place of {count}"

    def mix(self, adapter: str | None) -> None:
        """Scale an adapter, or mix two."""
        adapters = self._setting.adapters
        if adapter is None:
            self._client.generate("cat ->", adapter=adapters[0], scale=0.5, max_tokens=8)
        else:
            # Always the same one: a mix is an adapter that stays in memory.
            other = adapters[adapters.index(adapter) - 1]
            self._client.generate("cat ->", adapters={adapter: 0.7, other: 0.3}, max_tokens=8)

    def chat(self, adapter: str | None) -> None:
        """Take a turn in a conversation."""
        words = self._choice.sample(["cat", "window", "seven", "abandon"], 2)
        self._client.chat(
            [{"role": "user", "content": word} for word in words],
            adapter=self._setting.chats, max_tokens=8,
        )  # fmt: skip

    def show(self, adapter: str | None) -> None:
        """Ask about an image that was there before, and about a new one; go away; show none."""
        for seed in (self._choice.randrange(4), self._choice.randrange(1 << 32)):
            size = (self._choice.randint(20, 200), self._choice.randint(20, 200))
            image = Image(saved(picture(size=size, seed=seed)))
            messages: list[Message] = [{"role": "user", "content": [image, "cat"]}]
            options: dict[str, Any] = {"adapter": adapter, "max_tokens": 8, "ignore_eos": True}
            answer = self._client.chat(messages, **options, n=2)
            assert [len(one.token_ids) for one in answer.completions] == [8, 8]
            stream = self._client.stream(messages=messages, **options)
            if self._choice.random() < 0.5:
                next(stream)
            stream.close()  # type: ignore[attr-defined]
        with refused("half of an image"):
            self._client.chat([{"role": "user", "content": [Image(image.data[:80])]}])

    def tools(self, adapter: str | None) -> None:
        """Have a tool called."""
        size = self._choice.randint(1, 3)
        word = {"type": "string", "maxLength": size}
        tool = {"type": "object", "properties": {"word": word}, "required": ["word"]}
        answer = self._client.chat(
            [{"role": "user", "content": "cat"}], adapter=self._setting.chats, max_tokens=120,
            tools=[{"name": "look_up", "parameters": tool}], tool_choice="look_up",
        )  # fmt: skip
        names = [call.name for call in answer.tool_calls]
        assert names in (["look_up"], []), f"{names} were called"
        assert names or answer.finish_reason == "length", f"{answer.text!r} in place of a call"

    def embed(self, adapter: str | None) -> None:
        """Have texts embedded."""
        texts = self._choice.choices(["cat", "window", "seven ->"], k=self._choice.randint(1, 8))
        pooling = self._choice.choice(["last", "mean", "first"])
        answer = self._client.embed(texts, adapter=adapter, pooling=pooling)
        assert len(answer.vectors) == len(texts), f"{len(answer.vectors)} vectors of {len(texts)}"

    def read(self, adapter: str | None) -> None:
        """Have texts labelled, and answers found in one."""
        assert self._setting.labels and self._setting.spans
        self._client.classify(["cat", "window"], adapter=self._setting.labels, top_k=2)
        text = "Bob left in May. " * self._choice.randint(1, 40)
        self._client.answer(
            "Who left?", text, adapter=self._setting.spans, top_k=3, max_window_tokens=200
        )

    def form(self, adapter: str | None) -> None:
        """Ask for a text of some form, now and then of one that was not there before."""
        texts = self._choice.sample(["cat", "window", "seven", "</s>"], 2)
        answer = self._client.generate("cat ->", adapter=adapter, choice=texts)
        assert answer.text in texts, f"{answer.text!r} in place of one of {texts}"
        length = self._choice.randint(1, 64)
        answer = self._client.generate("cat ->", regex=f"[a-e]{{{length}}}", max_tokens=length)
        assert set(answer.text) <= set("abcde"), f"{answer.text!r} in place of letters"

    def search(self, adapter: str | None) -> None:
        """Have the best of some beams found."""
        count, size = self._choice.randint(2, 4), self._choice.randint(1, 12)
        found = self._client.generate(
            "cat ->", adapter=adapter, num_beams=count, n=count, max_tokens=size, ignore_eos=True
        ).completions
        scores = [one.beam_score or 0.0 for one in found]
        assert [len(one.token_ids) for one in found] == [size] * count, f"{found} of {size} tokens"
        assert scores == sorted(scores, reverse=True), f"the best is not the first of {scores}"

    def cancel(self, adapter: str | None) -> None:
        """Hang up while the answer comes; a stream that is closed cancels its request."""
        stream = self._open(adapter, max_tokens=self._setting.max_tokens, n=2)
        # Chunks are merged where they are read late, so that there may be fewer.
        for _ in islice(stream, self._choice.randint(1, 4)):
            pass
        stream.close()  # type: ignore[attr-defined]

    def slow(self, adapter: str | None) -> None:
        """Stop reading for a while, with more on the way than a connection takes at once."""
        stream = self._open(adapter, max_tokens=self._setting.max_tokens, n=4, logprobs=20)
        count = len(next(stream).token_ids)
        time.sleep(self._setting.pause)
        count += sum(len(chunk.token_ids) for chunk in stream)
        assert count == 4 * self._setting.max_tokens, f"a slow reader got {count} tokens"

    def upload(self, adapter: str | None) -> None:
        """Bring two versions, move an alias to and fro, use it, and take all away."""
        name, adapters = next(self._names), self._client.adapters
        first, second = self._choice.sample(list(self._setting.packages), 2)
        old = adapters.upload(name, first)
        adapters.set_alias(name, "stable", version=old.version)
        self._use(f"{name}:stable")
        new = adapters.upload(name, second)
        adapters.set_alias(name, "stable", weights={old.version: 50, new.version: 50})
        self._use(f"{name}:stable")
        adapters.roll_back(name, "stable")
        adapters.delete(name, wait=self._choice.random() < 0.5)

    def _use(self, adapter: str) -> None:
        """Have something done with an adapter that was uploaded."""
        self._client.generate("cat ->", adapter=adapter, max_tokens=4)

    def score(self, adapter: str | None) -> None:
        """Have a prompt scored: what was made before is as likely as it was then."""
        options: Any = {"adapter": adapter, "prompt_logprobs": self._choice.randint(0, 5)}
        made = self._client.generate(self._choice.choice(WORDS), logprobs=0, **GREEDY, **options)
        wanted = [each.chosen for each in (*made.prompt_logprobs, *made.logprobs)]
        tokens = [token.token_id for token in wanted]
        scored = self._client.generate(tokens, max_tokens=0, **options)
        found = [each.chosen for each in scored.prompt_logprobs]
        assert [token.token_id for token in found] == tokens
        assert math.isnan(found[0].logprob), f"the first token has {found[0].logprob}"
        for token, then in zip(found[1:], wanted[1:], strict=True):
            difference = abs(token.logprob - then.logprob)
            assert difference <= TOLERANCE, f"{token} was {then}"
        stream = self._client.stream(tokens, max_tokens=self._setting.max_tokens, **options)
        next(stream)
        stream.close()  # type: ignore[attr-defined]

    def infer(self, adapter: str | None) -> None:
        """Ask by the Open Inference Protocol, for all at once and beside each other."""
        model = adapter or self._client.info().base_model
        wanted = self._greedy(adapter)
        channel = self._client._channel
        other_apis.infer(channel, model, wanted, GREEDY)
        other_apis.infer_on_a_stream(channel, model, wanted, GREEDY)
        pause = self._choice.choice([0.0, 0.0, self._setting.pause])
        other_apis.leave_a_stream(channel, model, self._setting.max_tokens, pause)

    def batch(self, adapter: str | None) -> None:
        """Have a file of requests answered."""
        model = adapter or self._client.info().base_model
        wanted = self._greedy(adapter)
        other_apis.answer_a_file(self._loop, self._server.target, model, wanted, GREEDY)

    def routed(self, adapter: str | None) -> None:
        """Be a client of two servers, which this one is by two of its names."""
        wanted = self._greedy(adapter)
        with Client(
            other_apis.names_of(self._server.target), timeout=TIMEOUT, retries=False
        ) as client:
            for word, text in wanted.items():
                assert client.generate(word, adapter=adapter, **GREEDY).text == text
            stream = client.stream(WORDS[0], adapter=adapter, max_tokens=self._setting.max_tokens)
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            name = next(self._names)
            client.adapters.upload(name, self._choice.choice(self._setting.packages))
            client.adapters.prefetch(name)
            client.adapters.delete(name)
        target = self._server.target
        self._loop.run(other_apis.ask_beside_each_other(target, adapter, wanted, GREEDY))

    def _greedy(self, adapter: str | None) -> dict[str, str]:
        """Return two prompts, each with what `adapter` makes of it."""
        return {
            word: self._client.generate(word, adapter=adapter, **GREEDY).text
            for word in self._choice.sample(WORDS, 2)
        }

    def mistake(self, adapter: str | None) -> None:
        """Ask for what cannot be."""
        kinds: list[tuple[type[LoramuxError], dict[str, Any]]] = [
            (InvalidArgumentError, {"temperature": -1.0}),
            (InvalidArgumentError, {"max_tokens": 1 << 20}),
            (InvalidArgumentError, {"stop": ["x" * 5000]}),
            (InvalidArgumentError, {"regex": "("}),
            (InvalidArgumentError, {"prompt_logprobs": 21}),
            (InvalidArgumentError, {"max_tokens": 0}),
            (InvalidArgumentError, {"adapter": f"No/Name/{self._choice.random()}"}),
            (NotFoundError, {"adapter": f"nobody-{self._choice.randrange(10**9)}"}),
        ]
        for expected, options in kinds:
            with refused(repr(options), expected):
                self._client.generate("cat ->", **{"adapter": adapter, **options})
        self._send_junk(GENERATE)

    def _send_junk(self, method: str) -> None:
        """Upload what is no file, and call `method` with what is no message."""
        channel = self._client._channel
        data = self._choice.randbytes(5000)
        with refused("a file that is none"), raising():
            messages = [upload_header(next(self._names), data), *chunks(data)]
            AdapterServiceStub(channel).UploadAdapter(iter(messages), timeout=TIMEOUT)
        with refused("what is no message"), raising():
            send(channel, method, b"\xff" + data, timeout=TIMEOUT)

    def look(self, adapter: str | None) -> None:
        """Ask what there is."""
        self._client.info()
        self._client.load()
        self._client.adapters.list()
        if adapter:
            self._client.adapters.get(adapter)
        stub = health_pb2_grpc.HealthStub(self._client._channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def scrape(self, adapter: str | None) -> None:
        """Read the metrics."""
        assert self._server.metrics()["loramux_engine_up"] == 1

    def _open(self, adapter: str | None, **options: Any) -> Iterator[Any]:
        # Few texts: a tokenizer keeps the first 10,000 that it sees, and would only seem to leak.
        prompt = " ".join(self._choice.choices(["cat", "window", "seven", "->"], k=4))
        return self._client.stream(
            prompt, adapter=adapter, ignore_eos=True,
            temperature=self._choice.choice([0.0, 1.0]), **options,
        )  # fmt: skip
