"""From the engine's reports to the messages of one stream, without sockets."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client.samples import Sample

from loramux.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1.generation_pb2 import (
    GenerateRequest,
    GenerateResponse,
    SamplingParams,
    StreamGenerateResponse,
)
from loramux_server.access.caller import Caller, Role, acting
from loramux_server.access.quotas import Quotas
from loramux_server.engine_link.client import EngineClient
from loramux_server.metrics.series import Metrics
from loramux_server.metrics.top_labels import BASE, NONE, OTHER
from loramux_server.services.calls import Calls
from loramux_server.services.generation.completion_limits import CompletionLimits
from loramux_server.services.generation.images import ImageLimits, Preparer
from loramux_server.services.generation.service import UNARY_INTERVAL, GenerationService
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.statuses import Statuses
from loramux_server.store.package_settings import PackageSettingsCache
from loramux_server.store.policy import Policy
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.store.registry import Registry
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import (
    CacheStats,
    Cancel,
    Failure,
    Finish,
    Logprobs,
    Pause,
    PromptLogprobs,
    Report,
    Started,
    Stats,
    Submit,
    ToEngine,
    Token,
)
from loramux_server.wire.model_info import ModelInfo
from tests.crash.registry_model import DIGESTS, PACKAGES
from tests.crash.story import publish
from tests.support.engine_sizes import sizes_of
from tests.support.models import byte_tokenizer
from tests.support.policies import KeptPolicies
from tests.support.rooms import open_room

MAX_TOKENS = 1000
ALWAYS = (BASE, NONE, OTHER)
"""Labels that are there before anything counts, so that a first failure is seen."""
TOKEN = byte_tokenizer()("x").input_ids[-1]
STATS = Stats(
    running=1, waiting=0, used_blocks=1, preemptions=0, prompt_tokens=0, shared_tokens=0,
    device=CacheStats(), host=CacheStats(),
)  # fmt: skip


class Engine(EngineClient):
    """An engine that says what a test wants, when it wants it."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(
            EngineConfig(model=""), on_report=metrics.report, on_ready=metrics.engine_ready
        )
        self.sent: list[ToEngine] = []
        self.process: Any = SimpleNamespace(
            is_ready=True,
            send=self.sent.append,
            seconds_to_ready=1.0,
            ran_out_of_memory=False,
        )

    @property
    def ids(self) -> list[int]:
        return [message.request_id for message in self.sent if isinstance(message, Submit)]

    def report(self, *tokens: Token, **more: Any) -> None:
        self._dispatch(Report(stats=STATS, tokens=list(tokens), **more))


class Served:
    """The service over an engine of tests."""

    def __init__(
        self, registry: Registry | None = None, policies: KeptPolicies | None = None,
        room: WaitingRoom | None = None, vocab_size: int = 259, stream_interval: int = 1,
        preparer: Preparer | None = None, **of_model: Any,
    ) -> None:  # fmt: skip
        self.metrics = Metrics()
        self.spans = RequestSpans()
        self.engine = Engine(self.metrics)
        model = ModelInfo(
            name="", architecture="", fingerprint="", dtype="", device="", vocab_size=vocab_size,
            context_length=2 * MAX_TOKENS, num_parameters=1, eos_token_ids=[2], layers={},
            tokenizer_json=json.dumps(json.loads(byte_tokenizer().backend_tokenizer.to_str())),
            adapter_rows=8, max_running=8, num_blocks=8, sizes=sizes_of(),
        )  # fmt: skip
        self.model = model = msgspec.structs.replace(model, **of_model)
        quotas, room = Quotas(policies or KeptPolicies()), room or open_room()
        self.prompts = Prompts(model, preparer=preparer)
        self.service = GenerationService(
            engine=self.engine, registry=registry, model=model,  # type: ignore[arg-type]
            calls=Calls(self.metrics, quotas, room), statuses=Statuses(), quotas=quotas,
            room=room, prompts=self.prompts, spans=self.spans,
            package_settings=PackageSettingsCache(), images=ImageLimits(3, 1 << 20),
            completions=CompletionLimits(most=8, most_tokens=1 << 20, most_bytes=1 << 20),
            default_timeout=60, stream_interval=stream_interval,
        )  # fmt: skip

    def stream(
        self, *, timeout: float | None = None, adapter: str = "", prompt: int = 5, **sampling: Any
    ) -> AsyncGenerator[StreamGenerateResponse, None]:
        context: Any = SimpleNamespace(time_remaining=lambda: timeout)
        return self.service.StreamGenerate(_asked(prompt, adapter, **sampling), context)

    async def whole(self, **sampling: Any) -> GenerateResponse:
        context: Any = SimpleNamespace(time_remaining=lambda: None)
        return await self.service.Generate(_asked(5, "", **sampling), context)

    def count(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"loramux_{name}", {"adapter": "base"})

    @property
    def counted(self) -> set[str]:
        """What requests are counted under."""
        samples = [sample for m in self.metrics.registry.collect() for sample in m.samples]
        return {
            sample.labels["adapter"]
            for sample in samples
            if "adapter" in sample.labels
            and (sample.labels["adapter"] not in ALWAYS or _counts(sample))
        }


def _counts(sample: Sample) -> bool:
    return bool(sample.value) and not sample.name.endswith("_created")


def _asked(prompt: int, adapter: str, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(
        prompt_token_ids=[prompt],
        adapter=adapter,
        sampling=SamplingParams(**{"max_tokens": MAX_TOKENS, **sampling}),
    )


@pytest.fixture
def served() -> Served:
    return Served()


async def begun(
    served: Served, stream: AsyncIterator[StreamGenerateResponse]
) -> StreamGenerateResponse:
    """Return the first message of `stream`, after the engine's first token of its completion."""
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    served.engine.report(Token(served.engine.ids[0], TOKEN))
    return await first


async def test_a_reader_that_keeps_up_gets_each_token_at_once(served: Served) -> None:
    stream = served.stream()
    response = await begun(served, stream)
    for finish in (None, None, Finish.LENGTH):
        assert (list(response.delta.token_ids), response.delta.text) == ([TOKEN], "x")
        served.engine.report(Token(served.engine.ids[0], TOKEN, finish))
        response = await anext(stream)
    assert response.usage.completion_tokens == 4
    assert await anext(stream, None) is None


async def woken(waiting: "asyncio.Future[Any]") -> bool:
    """Return whether who waits goes on by what there is."""
    for _ in range(5):
        await asyncio.sleep(0)
    return waiting.done()


async def test_some_tokens_of_a_stream_may_go_together_but_first_and_last_at_once() -> None:
    served = Served(stream_interval=4)
    stream = served.stream(n=2)
    assert len((await begun(served, stream)).delta.token_ids) == 1
    one, other = served.engine.ids
    following = asyncio.ensure_future(anext(stream))
    for _ in range(3):
        served.engine.report(Token(one, TOKEN))
        assert not await woken(following)
    served.engine.report(Token(one, TOKEN))
    assert len((await following).delta.token_ids) == 4
    for reports in ([Token(other, TOKEN)], [Token(one, TOKEN), Token(one, TOKEN, Finish.LENGTH)]):
        following = asyncio.ensure_future(anext(stream))
        for token in reports:
            assert not await woken(following)
            served.engine.report(token)
        assert len((await following).delta.token_ids) == len(reports)
    await stream.aclose()


async def test_each_completion_of_a_stream_has_an_interval_of_its_own() -> None:
    served = Served(stream_interval=3)
    stream = served.stream(n=2)
    await begun(served, stream)
    one, other = served.engine.ids
    served.engine.report(Token(other, TOKEN))
    assert len((await anext(stream)).delta.token_ids) == 1
    following = asyncio.ensure_future(anext(stream))
    for _ in range(3):
        assert not await woken(following)
        served.engine.report(Token(one, TOKEN), Token(other, TOKEN))
    found = [await following, await anext(stream)]
    assert [len(response.delta.token_ids) for response in found] == [3, 3]
    await stream.aclose()


async def test_prompt_logprobs_come_before_the_tokens_of_all_completions(
    served: Served,
) -> None:
    stream = served.stream(n=2, prompt_logprobs=0)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    one, other = served.engine.ids
    submits = [message for message in served.engine.sent if isinstance(message, Submit)]
    assert [each.ask.sampling.num_prompt_logprobs for each in submits] == [0, None]
    for _ in range(2):  # whose prompt was in the cache
        served.engine.report(Token(other, TOKEN))
        assert not await woken(first)
    served.engine.report(Token(one, TOKEN), prompts=[PromptLogprobs(one, b"")])
    found = [await first, await anext(stream)]
    assert [response.delta.index for response in found] == [0, 1]
    assert [len(response.delta.token_ids) for response in found] == [1, 2]
    assert [len(response.prompt_logprobs) for response in found] == [1, 0]
    served.engine.report(Token(other, TOKEN, Finish.LENGTH))
    response = await anext(stream)
    assert (response.delta.index, len(response.prompt_logprobs)) == (1, 0)
    await stream.aclose()


async def test_a_prompt_that_is_not_continued_is_paid_for() -> None:
    policies = KeptPolicies(Policy(tenant=DEFAULT_TENANT, tokens_per_minute=MAX_TOKENS))
    served = Served(policies=policies)

    def prompt() -> AsyncGenerator[StreamGenerateResponse, None]:
        return served.stream(max_tokens=0, prompt_logprobs=0)

    for number in range(3):
        stream = prompt()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        request_id = served.engine.ids[-1]
        served.engine.report(
            started=[Started(request_id, 0.25, number)],
            prompts=[PromptLogprobs(request_id, b"", Finish.LENGTH)],
        )
        response = await first
        assert (list(response.delta.token_ids), response.delta.finish_reason) == ([], 2)
        assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (1, 0)
        assert response.usage.cached_tokens == number
        assert response.timing.queue_seconds == 0.25
        assert response.timing.time_to_first_token_seconds == 0
        assert await anext(stream, None) is None
        assert not served.engine._calls
    assert served.count("generated_tokens_total") == 0
    assert served.count("prompt_tokens_total") == 3
    # One token was used each time, so what may be made at most is more than what is left.
    with pytest.raises(ResourceExhaustedError):
        await anext(served.stream(max_tokens=MAX_TOKENS - 1))
    # Who is gone before anything was told has used none.
    stream = prompt()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    await woken(waiting)
    first = asyncio.ensure_future(anext(served.stream(max_tokens=MAX_TOKENS - 4)))
    await asyncio.sleep(0)
    served.engine.report(Token(served.engine.ids[-1], TOKEN))
    await first


HELD_BACK = 200


async def held_back() -> tuple[Served, AsyncGenerator[StreamGenerateResponse, None]]:
    """Return a stream of which tokens wait, and whose tenant cannot pay for them and another."""
    policies = KeptPolicies(Policy(tenant=DEFAULT_TENANT, tokens_per_minute=MAX_TOKENS + 10))
    served = Served(policies=policies, stream_interval=HELD_BACK + 1)
    stream = served.stream()
    await begun(served, stream)
    for _ in range(HELD_BACK):
        served.engine.report(Token(served.engine.ids[0], TOKEN))
    return served, stream


async def test_what_was_made_before_the_engine_died_is_sent_and_paid_for() -> None:
    served, stream = await held_back()
    served.engine._ready_or_dead(False)
    assert len((await anext(stream)).delta.token_ids) == HELD_BACK
    with pytest.raises(UnavailableError):
        await anext(stream)
    await check_quota_is_used(served)


async def test_who_hangs_up_pays_for_what_was_made() -> None:
    served, stream = await held_back()
    await stream.aclose()
    await check_quota_is_used(served)


async def check_quota_is_used(served: Served) -> None:
    with pytest.raises(ResourceExhaustedError) as caught:
        await anext(served.stream())
    assert caught.value.reason == "QUOTA_EXCEEDED"


async def test_many_log_probabilities_wake_who_gets_all_at_the_end_before_they_are_too_many(
    served: Served,
) -> None:
    whole = asyncio.ensure_future(served.whole(n=4, logprobs=20))
    await asyncio.sleep(0)
    logprobs = Logprobs(chosen=-1.0, top=[(TOKEN, -1.0)] * 20)
    for number in range(50):
        finish = Finish.LENGTH if number == 49 else None
        served.engine.report(
            *(Token(one, TOKEN, finish, logprobs=logprobs) for one in served.engine.ids)
        )
        await woken(whole)
    assert [len(found.token_ids) for found in (await whole).completions] == [50] * 4
    assert not any(isinstance(message, Pause) for message in served.engine.sent)


async def test_who_gets_all_at_the_end_is_looked_after_less_often(served: Served) -> None:
    whole = asyncio.ensure_future(served.whole())
    await asyncio.sleep(0)
    for counted in [1] * UNARY_INTERVAL + [1 + UNARY_INTERVAL]:
        served.engine.report(Token(served.engine.ids[0], TOKEN))
        assert not await woken(whole)
        assert served.count("generated_tokens_total") == counted
    served.engine.report(Token(served.engine.ids[0], TOKEN, Finish.LENGTH))
    (completion,) = (await whole).completions
    assert list(completion.token_ids) == [TOKEN] * (2 + UNARY_INTERVAL)


async def test_a_stop_string_ends_at_once_what_is_sent_at_the_end(served: Served) -> None:
    whole = asyncio.ensure_future(served.whole(stop=["xxx"]))
    await asyncio.sleep(0)
    for _ in range(3):
        assert not await woken(whole)
        served.engine.report(Token(served.engine.ids[0], TOKEN))
    assert len((await whole).completions[0].token_ids) == 3
    assert Cancel(served.engine.ids[0]) in served.engine.sent


async def test_a_reader_that_is_behind_gets_all_that_came_in_one_message(served: Served) -> None:
    stream = served.stream()
    await begun(served, stream)
    for number in range(2, MAX_TOKENS + 1):
        finish = Finish.LENGTH if number == MAX_TOKENS else None
        served.engine.report(Token(served.engine.ids[0], TOKEN, finish))
    rest = [response async for response in stream]
    assert [len(response.delta.token_ids) for response in rest] == [MAX_TOKENS - 1]
    assert rest[0].delta.text == "x" * (MAX_TOKENS - 1)
    assert rest[0].usage.completion_tokens == MAX_TOKENS
    assert served.count("generated_tokens_total") == MAX_TOKENS
    assert served.count("inter_token_seconds_count") == MAX_TOKENS - 1


async def test_what_came_together_is_one_message_for_each_completion(served: Served) -> None:
    stream = served.stream(n=2)
    first = await begun(served, stream)
    one, other = served.engine.ids
    for token in (Token(other, TOKEN), Token(one, TOKEN), Token(other, TOKEN, Finish.STOP)):
        served.engine.report(token)
    served.engine.report(Token(one, TOKEN, Finish.LENGTH))
    rest = [response async for response in stream]
    found = [(response.delta.index, len(response.delta.token_ids)) for response in [first, *rest]]
    assert found == [(0, 1), (1, 2), (0, 2)]
    assert [response.HasField("usage") for response in rest] == [False, True]


async def test_a_stop_string_ends_a_message_and_cancels_the_rest(served: Served) -> None:
    stream = served.stream(stop=["xxx"])
    await begun(served, stream)
    for _ in range(9):
        served.engine.report(Token(served.engine.ids[0], TOKEN))
    rest = [response async for response in stream]
    assert [len(response.delta.token_ids) for response in rest] == [2]
    assert rest[0].usage.completion_tokens == 3
    assert Cancel(served.engine.ids[0]) in served.engine.sent


@pytest.mark.parametrize("is_behind", [True, False])
async def test_a_deadline_holds_whether_or_not_the_reader_is_behind(
    served: Served, is_behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, ahead = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    stream = served.stream(timeout=600)
    await begun(served, stream)
    late = None
    if is_behind:
        served.engine.report(Token(served.engine.ids[0], TOKEN))
    else:
        late = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
    ahead = 600.0
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the first is for the timer
    if is_behind:
        assert len((await anext(stream)).delta.token_ids) == 1
    with pytest.raises(DeadlineExceededError):
        await (late or anext(stream))
    assert Cancel(served.engine.ids[0]) in served.engine.sent


async def test_a_death_of_the_engine_ends_who_waits_and_who_is_behind(served: Served) -> None:
    waiting, behind = served.stream(), served.stream()
    await begun(served, waiting)
    second = asyncio.ensure_future(anext(behind))
    await asyncio.sleep(0)
    served.engine.report(*(Token(number, TOKEN) for number in served.engine.ids))
    await second
    await anext(waiting)
    blocked = asyncio.ensure_future(anext(waiting))
    served.engine.report(Token(served.engine.ids[1], TOKEN))
    await asyncio.sleep(0)
    served.engine._ready_or_dead(False)
    assert len((await anext(behind)).delta.token_ids) == 1
    for late in (blocked, asyncio.ensure_future(anext(behind))):
        assert await woken(late)
        with pytest.raises(UnavailableError):
            await late


async def test_the_time_in_the_queue_is_noted_once_for_a_request(served: Served) -> None:
    stream = served.stream(n=2)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    one, other = served.engine.ids
    served.engine.report(started=[Started(one, 0.5), Started(other, 2.0)])
    served.engine.report(Token(one, TOKEN, Finish.STOP), Token(other, TOKEN, Finish.STOP))
    await first
    assert (await anext(stream)).timing.queue_seconds == 0.5
    assert served.metrics.registry.get_sample_value("loramux_queue_seconds_count") == 1


async def test_an_adapter_that_is_not_there_is_never_the_base(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "store")
    served = Served(registry)
    try:
        for name in ("nobody", "team/nobody:3", f"nobody@sha256:{'0' * 64}"):
            with pytest.raises(NotFoundError):
                await asyncio.wait_for(anext(served.stream(adapter=name)), timeout=10)
        assert served.engine.sent == []
    finally:
        registry.close()


async def test_a_name_that_is_not_registered_is_no_label(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "store")
    served = Served(registry)
    try:
        for name in ("nobody", "nobody:3", "No Body"):
            with pytest.raises((InvalidArgumentError, NotFoundError)):
                await asyncio.wait_for(anext(served.stream(adapter=name)), timeout=10)
    finally:
        registry.close()
    assert served.counted == {NONE}


async def test_an_adapter_counts_under_its_name_however_it_was_asked_for(tmp_path: Path) -> None:
    with ExitStack() as exits:
        registry = exits.enter_context(closing(Registry(tmp_path / "store")))
        staged = registry.stage()
        exits.callback(registry.discard, staged)
        staged.write(PACKAGES[0])
        publish(registry, "poet", staged)
        served = Served(registry)
        for number, name in enumerate(("poet", "poet:1", "poet:latest", f"poet@{DIGESTS[0]}")):
            first = asyncio.ensure_future(anext(served.stream(adapter=name)))
            async with asyncio.timeout(60):
                while len(served.engine.ids) == number:  # noqa: ASYNC110 - nothing to await
                    await asyncio.sleep(0.01)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
    assert served.counted == {"poet"}


@pytest.mark.parametrize("vocab_size", [250, 300])
async def test_the_model_says_which_tokens_there_are_and_not_its_tokenizer(vocab_size: int) -> None:
    served = Served(vocab_size=vocab_size)
    last = vocab_size - 1
    fine = served.stream(prompt=last, stop_token_ids=[last], logit_bias={last: 1.0})
    going_on = asyncio.ensure_future(anext(fine))
    await asyncio.sleep(0)
    assert len(served.engine.ids) == 1
    for field, beyond in (
        ("prompt_token_ids", served.stream(prompt=vocab_size)),
        ("sampling.stop_token_ids", served.stream(stop_token_ids=[vocab_size])),
        ("sampling.logit_bias", served.stream(logit_bias={vocab_size: 1.0})),
    ):
        refused = asyncio.ensure_future(anext(beyond))
        await asyncio.sleep(0)
        assert refused.done()
        with pytest.raises(InvalidArgumentError, match=f"{field} holds token {vocab_size}"):
            await refused
    going_on.cancel()


@pytest.mark.parametrize("is_queued", [True, False])
async def test_what_its_caller_gives_up_ends_in_the_engine(served: Served, is_queued: bool) -> None:
    stream = served.stream(n=2)
    if not is_queued:
        await begun(served, stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    ids = served.engine.ids
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [m for m in served.engine.sent if isinstance(m, Cancel)] == [Cancel(i) for i in ids]
    assert served.engine._calls == {}


async def test_who_gives_up_between_the_last_token_and_the_status_leaves_nothing_behind(
    served: Served,
) -> None:
    stream = served.stream()
    await begun(served, stream)
    served.engine.report(Token(served.engine.ids[0], TOKEN, Finish.LENGTH))
    await stream.aclose()
    assert served.engine._calls == {}
    # The engine has let go of it already.
    assert not any(isinstance(message, Cancel) for message in served.engine.sent)


async def test_who_gives_up_pays_for_what_it_got() -> None:
    served = Served(policies=KeptPolicies(Policy(tenant=DEFAULT_TENANT, tokens_per_minute=1001)))
    stream = served.stream()
    await begun(served, stream)
    await stream.aclose()
    # A token of the prompt and one of the answer are gone.
    with pytest.raises(ResourceExhaustedError) as caught:
        await anext(served.stream())
    assert caught.value.reason == "QUOTA_EXCEEDED"


async def test_who_gives_way_has_left_the_engine_before_its_place_is_taken() -> None:
    served = Served(room=open_room(max_running=0, max_waiting=2))
    streams = [served.stream() for _ in range(3)]
    tasks = []
    for tenant, stream in zip(("noisy", "noisy", "quiet"), streams, strict=True):
        with acting(Caller(tenant, Role.USER)):
            tasks.append(asyncio.ensure_future(anext(stream)))
            await asyncio.sleep(0)
    first, second, third = served.engine.ids
    assert [m for m in served.engine.sent if isinstance(m, Cancel)] == [Cancel(second)]
    assert [m.request_id for m in served.engine.sent] == [first, second, second, third]  # type: ignore[union-attr]
    with pytest.raises(ResourceExhaustedError) as caught:
        await tasks[1]
    assert caught.value.reason == "QUEUE_FULL"
    for task in tasks:
        task.cancel()


async def test_the_engine_learns_how_long_a_request_may_take(served: Served) -> None:
    await begun(served, served.stream(timeout=7.0))
    (submit,) = (message for message in served.engine.sent if isinstance(message, Submit))
    assert submit.timeout is not None
    assert 0 < submit.timeout <= 7.0


async def test_who_would_be_late_because_of_others_is_asked_to_try_again(served: Served) -> None:
    first = asyncio.ensure_future(anext(served.stream(timeout=7.0)))
    await asyncio.sleep(0)
    failure = Failure(served.engine.ids[0], "DEADLINE_UNREACHABLE", "not within 7 s")
    served.engine.report(failures=[failure])
    with pytest.raises(ResourceExhaustedError, match="not within 7 s") as caught:
        await first
    assert caught.value.reason == "DEADLINE_UNREACHABLE"
    assert caught.value.retry_delay
