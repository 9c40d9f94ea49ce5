"""Ways to a server beside those of our own clients, and over several of its names.

Each demands what a greedy answer to a prompt has to be.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from loramux import AsyncClient
from loramux.gateway.backend import Backend
from loramux.gateway.batch import OutputFile, RequestFile, answer_all
from loramux.gateway.in_process import InProcessGateway
from tests.soak.loop import Loop
from tests.support.open_inference import asking, call, texts_of

TIMEOUT = 60.0
NOBODY = "nobody-at-all"
"""No adapter is called so."""
_ONLY_OUTPUT = {"exclude_input_in_output": True}


def infer(
    channel: grpc.Channel, model: str, wanted: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Ask for all of `wanted`, prompt -> text, in one request of the Open Inference Protocol."""
    request = asking(model, *wanted, parameters=dict(options), flags=_ONLY_OUTPUT)
    texts = texts_of(call(channel, "ModelInfer", request))
    assert texts == [*wanted.values()], f"{texts} of ModelInfer in place of {wanted}"


def infer_on_a_stream(
    channel: grpc.Channel, model: str, wanted: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Ask for each in pieces, beside each other and beside what fails."""
    requests = [
        asking(model, prompt, id=prompt, parameters=dict(options), flags={"stream": True})
        for prompt in wanted
    ]
    requests.insert(1, asking(NOBODY, "cat ->", id=NOBODY))
    texts: defaultdict[str, str] = defaultdict(str)
    ends: Counter[str] = Counter()
    for each in call(channel, "ModelStreamInfer", iter(requests)):
        answer = each.infer_response
        ends[answer.id] += answer.parameters["triton_final_response"].bool_param
        texts[answer.id] += each.error_message or "".join(texts_of(answer))
    error = texts.pop(NOBODY, "")
    assert error.startswith("NOT_FOUND: "), f"{error!r} of what is not there"
    assert texts == wanted, f"{dict(texts)} of ModelStreamInfer in place of {wanted}"
    assert ends == Counter([NOBODY, *wanted]), f"{ends} ends of requests"


def leave_a_stream(channel: grpc.Channel, model: str, max_tokens: int, pause: float) -> None:
    """Hang up while several requests are under way, of which nothing was read for a while."""
    request = asking(
        model, "cat ->", parameters={"max_tokens": max_tokens, "ignore_eos": True},
        flags={"stream": True},
    )  # fmt: skip
    answers = call(channel, "ModelStreamInfer", iter([request] * 4))
    next(answers)
    time.sleep(pause)
    answers.cancel()


def answer_a_file(
    loop: Loop, target: str, model: str, wanted: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Have a file answered as `loramux batch` does; what was refused, once more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = dict.fromkeys(wanted, model)
        statuses = _answer(loop, target, folder, {**models, next(iter(wanted)): NOBODY}, options)
        assert statuses == {200: len(wanted) - 1, 404: 1}, f"{statuses} of a file with a mistake"
        statuses = _answer(loop, target, folder, models, options)
        assert statuses == {200: 1}, f"{statuses} of a file without its mistake"
        answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
        texts = {
            each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in answers
        }
        assert texts == wanted, f"{texts} of a file in place of {wanted}"
        files = sorted(path.name for path in folder.iterdir())
        assert files == ["answers", "requests"], f"{files} after a file was answered"


def _answer(
    loop: Loop, target: str, folder: Path, models: Mapping[str, str], options: Mapping[str, Any]
) -> Counter[int]:
    """Ask each prompt of its model, go on with what there is, and return how often what came."""
    source = folder / "requests"
    with source.open("w") as file:
        for prompt, model in models.items():
            body = {"model": model, "prompt": prompt, **options}
            line = {"custom_id": prompt, "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")

    async def run() -> Counter[int]:
        backend = partial(Backend, target, retries=False, routing="adapter", timeout=TIMEOUT)
        with OutputFile(folder / "answers", goes_on=True) as output:
            async with InProcessGateway.opened(backend, "") as gateway:
                lines = RequestFile(source)
                progress = await answer_all(lines, gateway, output, concurrency=4, patience=0)
        return progress.statuses

    return loop.run(run())


def names_of(target: str) -> list[str]:
    """Return two names of a server on this machine, each of which is a server to a client."""
    return [target, target.replace("127.0.0.1", "localhost")]


async def ask_beside_each_other(
    target: str, adapter: str | None, wanted: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Have more calls under way than one server of two may have, and give up one."""

    async with AsyncClient(names_of(target), timeout=TIMEOUT, retries=False) as client:
        given_up = asyncio.create_task(
            client.generate("cat ->", adapter=adapter, max_tokens=100, ignore_eos=True)
        )
        prompts = [*wanted] * 6
        answers = await asyncio.gather(
            *(client.generate(prompt, adapter=adapter, **options) for prompt in prompts)
        )
        given_up.cancel()
        texts = [answer.text for answer in answers]
        assert texts == [wanted[prompt] for prompt in prompts], f"{texts} of two servers"
