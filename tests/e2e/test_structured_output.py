"""Texts that have a form, over the real socket, by a model of random weights, which is no help.

What is refused by name is in test_bad_requests.py, and what would do harm in
tests/server/test_forms.py.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from loramux import AsyncClient, Client, Completion, FinishReason, Generation
from loramux.cli.app import run
from loramux.errors import InvalidArgumentError, LoramuxError
from tests.conftest import ADAPTERS
from tests.support.models import byte_tokenizer
from tests.support.polling import eventually
from tests.support.server import RunningServer

EOS = 2
QUOTE, CLOSE = byte_tokenizer()('"}').input_ids[-2:]
FREE: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.5}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def meets_schema(text: str) -> bool:
    found = json.loads(text)
    return (
        {"name", "age", "kind"} <= set(found) <= set(SCHEMA["properties"])
        and isinstance(found["name"], str)
        and len(found["name"]) <= 6
        and type(found["age"]) is int
        and 0 <= found["age"] <= 150
        and found["kind"] in ("a", "b")
        and len(found.get("tags", [])) <= 2
        and all(type(tag) is bool for tag in found.get("tags", []))
    )


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


FORMS: dict[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "schema": ({"json_schema": SCHEMA}, meets_schema),
    "object": ({"json_object": True, "logit_bias": {QUOTE: 4.0, CLOSE: 4.0}}, is_object),
    "regex": (
        {"regex": r"[a-z]{2,5}-\d{3}(é|ü)*"},
        re.compile(r"[a-z]{2,5}-\d{3}(é|ü)*").fullmatch,
    ),
    "choice": ({"choice": ["yes", "no, never", "</s>"]}, {"yes", "no, never", "</s>"}.__contains__),
    "grammar": (
        {"grammar": 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,2}/'},
        re.compile(r"\(*[0-9]{1,2}\)*").fullmatch,
    ),
}
"""What is asked for, and whether a text is it."""


# What comes


@pytest.mark.parametrize("name", FORMS)
def test_whatever_the_seed_the_text_has_the_form(client: Client, name: str) -> None:
    options, is_right = FORMS[name]

    def completions(seed: int) -> tuple[Completion, ...]:
        adapter = [None, *ADAPTERS][seed % (len(ADAPTERS) + 1)]
        answer = client.generate(
            "hello", adapter=adapter, n=2, seed=2 * seed, max_tokens=120, **options
        )
        return answer.completions

    with ThreadPoolExecutor(8) as pool:
        found = [each for pair in pool.map(completions, range(12)) for each in pair]
    ended = [each for each in found if each.finish_reason is FinishReason.STOP]
    assert len(ended) > 16
    assert [each.text for each in ended if not is_right(each.text)] == []
    assert {each.token_ids[-1] for each in ended} == {EOS}
    assert len({each.text for each in ended}) > 1


def test_others_in_the_batch_get_what_they_get_alone(client: Client) -> None:
    requests: list[dict[str, Any]] = []
    for seed in range(4):
        requests += [{"seed": seed, "adapter": name, **FREE} for name in (None, "wide")]
        requests += [{"seed": seed, "max_tokens": 60, **FORMS["schema"][0]}]
        requests += [{"seed": seed, "adapter": "rs", **FORMS["regex"][0]}]

    def tokens(options: dict[str, Any]) -> tuple[int, ...]:
        return client.generate("hello", **options).token_ids

    alone = [tokens(options) for options in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(tokens, requests)) == alone


def test_a_stream_and_several_completions_are_what_each_is_alone(client: Client) -> None:
    options: dict[str, Any] = {"regex": "[a-f]{4,9}x", "max_tokens": 40}
    several = client.generate("hello", n=3, seed=5, **options)
    for index, completion in enumerate(several.completions):
        alone = client.generate("hello", seed=5 + index, **options)
        assert (alone.text, alone.token_ids) == (completion.text, completion.token_ids)
        chunks = list(client.stream("hello", seed=5 + index, **options))
        assert "".join(chunk.text for chunk in chunks) == completion.text
        assert chunks[-1].finish_reason is FinishReason.STOP
        assert chunks[-1].stop_token_id == EOS


async def test_the_asynchronous_client_takes_forms_too(tiny_server: RunningServer) -> None:
    async with AsyncClient(tiny_server.target) as client:
        answer = await client.generate("hello", json_schema={"enum": ["x"]})
        text = "".join([chunk.text async for chunk in client.stream("hello", choice=["a b"])])
    assert (answer.text, text) == ('"x"', "a b")


def test_the_answer_says_which_form_was_used(client: Client) -> None:
    options: list[dict[str, Any]] = [
        {"json_schema": json.dumps(SCHEMA)}, {"json_object": True}, {"regex": "a+"},
        {"choice": ["a", "b c"]}, {"grammar": 'start: "a"'},
    ]  # fmt: skip
    for option in options:
        used = client.generate("hello", max_tokens=1, **option).sampling
        assert option.items() <= used.items()
        assert client.generate("hello", **used).sampling == used


# Beside other parameters


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}, {"top_k": 259},
        {"temperature": 100.0, "top_k": 5}, {"repetition_penalty": 100.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0}, {"logprobs": 3},
        {"logit_bias": dict.fromkeys(range(259), -100.0)}, {"logit_bias": {70: 100.0, EOS: 100.0}},
        {"logit_bias": {EOS: -100.0}}, {"stop_token_ids": [70]}, {"skip_special_tokens": True},
    ],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_no_parameter_leads_away_from_the_form(client: Client, options: dict[str, Any]) -> None:
    for seed in range(3):
        answer = client.generate("hello", regex="[a-z]{3}[0-9]{0,2}", seed=seed, **options)
        assert answer.finish_reason is FinishReason.STOP
        if answer.completions[0].stop_token_id == EOS:
            assert re.fullmatch("[a-z]{3}[0-9]{0,2}", answer.text)
        assert len(answer.logprobs) == (len(answer.token_ids) if "logprobs" in options else 0)


def test_the_likeliest_token_of_those_that_are_allowed_is_taken(client: Client) -> None:
    answer = client.generate("hello", regex="[ab]{8}", temperature=0.0, logprobs=20)
    a, b = (client.generate("hello", choice=[text]).token_ids[0] for text in "ab")
    for position in answer.logprobs[:-1]:
        assert position.chosen.token_id in (a, b)
        # They are of the model's own distribution, in which nothing is forbidden.
        assert position.chosen.logprob < 0
        above = {t.token_id for t in position.top if t.logprob > position.chosen.logprob}
        assert not above & {a, b}


def test_what_ends_a_text_before_its_form_does_cuts_it(client: Client) -> None:
    cut = client.generate("hello", regex="[a-c]{40}", max_tokens=7)
    assert (cut.finish_reason, len(cut.text)) == (FinishReason.LENGTH, 7)
    stopped = client.generate("hello", regex="[a-c]{5}x[a-c]{5}", stop=["x"])
    assert (stopped.finish_reason, len(stopped.text)) == (FinishReason.STOP, 5)
    assert stopped.completions[0].stop_string == "x"
    whole = client.generate("hello", regex="[a-c]{9}", max_tokens=9)
    assert (whole.finish_reason, len(whole.text)) == (FinishReason.LENGTH, 9)


def test_streams_that_hang_up_leave_nothing_behind(
    tiny_server: RunningServer, client: Client
) -> None:
    for _ in range(4):
        stream = client.stream("hello", regex="[a-c]{200}", max_tokens=200)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: tiny_server.metrics()["loramux_requests_running"] == 0)
    assert client.generate("hello", choice=["on"]).text == "on"


# What would do harm


def chained(count: int) -> dict[str, Any]:
    parts: dict[str, Any] = {"p0": {"type": "string"}}
    for number in range(1, count):
        parts[f"p{number}"] = {"properties": {"a": {"$ref": f"#/$defs/p{number - 1}"}}}
    return {"$defs": parts, "$ref": f"#/$defs/p{count - 1}"}


NASTY: dict[str, dict[str, Any]] = {
    "stack": {"json_schema": chained(1000)},
    "states": {"regex": "(a{1000}){1000}"},
    "items": {"grammar": 'start: s\ns: s s s | s s | "a" | ""'},
    "later": {"regex": "[xy]((a{1000}){1000}){1000}"},
    "properties": {"json_schema": {"properties": {f"p{i}": {} for i in range(3000)}}},
}


def test_a_form_that_would_do_harm_ends_its_request_alone(
    tiny_server: RunningServer, client: Client
) -> None:
    engine, frontend = psutil.Process(tiny_server.engine_pid), psutil.Process(tiny_server.pid)
    before = [process.memory_info().rss for process in (engine, frontend)]
    beside = [{"seed": seed, "adapter": "wide", **FREE} for seed in range(4)]
    beside += [{"seed": seed, "max_tokens": 90, **FORMS["schema"][0]} for seed in range(4)]
    alone = [client.generate("hello", **options).token_ids for options in beside]

    def harm(options: dict[str, Any]) -> LoramuxError | Generation:
        try:
            return client.generate("hello", max_tokens=12, **options)
        except LoramuxError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(harm, NASTY.values())
        others = pool.map(lambda options: client.generate("hello", **options).token_ids, beside)
        for answer in answers:
            if isinstance(answer, LoramuxError):
                assert answer.field.startswith("sampling.structured_output."), answer
                assert answer.reason in ("INVALID_FIELD", "STRUCTURED_OUTPUT_FAILED")
                assert answer.field in str(answer)
        assert list(others) == alone
    with pytest.raises(InvalidArgumentError, match="exceeds the memory limit of a constraint"):
        client.generate("hello", **NASTY["stack"])
    assert tiny_server.engine_pid == engine.pid
    after = [process.memory_info().rss for process in (engine, frontend)]
    assert all(now < then + (64 << 20) for then, now in zip(before, after, strict=True))
    assert client.generate("hello", choice=["alive"]).text == "alive"


def test_forms_are_counted_by_kind(tiny_server: RunningServer, client: Client) -> None:
    before = tiny_server.metrics()
    client.generate("hello", regex="counted [a-c]", n=2)
    client.generate("hello", choice=["counted"])
    after = tiny_server.metrics()
    for kind in ("regex", "choice"):
        name = f'loramux_structured_requests_total{{kind="{kind}"}}'
        assert after[name] == before.get(name, 0) + 1
    name = "loramux_form_compile_seconds_count"
    assert after[name] == before[name] + 2


# The command line


def test_the_command_line_takes_forms(
    tiny_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(
            sys,
            "argv",
            ["loramux", "generate", "hello", "--server", tiny_server.target, *arguments],
        )
        with pytest.raises(SystemExit) as ended:
            run()
        return int(ended.value.code or 0), capsys.readouterr().out

    (tmp_path / "schema.json").write_text('{"enum": ["from a file"]}')
    assert command("--json-schema", str(tmp_path / "schema.json")) == (0, '"from a file"\n')
    assert command("--json-schema", '{"const": 7}') == (0, "7\n")
    assert command("--regex", "x{3}") == (0, "xxx\n")
    assert command("--choice", "one", "--choice", "one") == (0, "one\n")
    assert command("--json-schema", str(tmp_path / "none.json"))[0] == 2
