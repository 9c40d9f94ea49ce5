"""The process that renders templates: bounded in time and memory, and without a way out."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.messages import Conversation, Message, Piece, Render, Setup, TemplateTokens
from loramux_server.chat.renderer import Renderer

SETUP = Setup(TemplateTokens(("<s>", "</s>"), variables={"bos_token": "<s>"}), cpu_seconds=0.2)
SIMPLE = "{{ bos_token }}{{ messages[0].content }}"
WELL = [Piece("<s>", True), Piece("hi", False)]


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    renderer = Renderer(SETUP)
    yield renderer
    await renderer.close()


def request(template: str, content: str = "hi") -> Render:
    return Render(template, Conversation([Message("user", content)]), True)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


async def test_a_process_starts_with_the_first_conversation_and_stays(renderer: Renderer) -> None:
    before = children()
    await asyncio.gather(*(renderer.render(request(SIMPLE)) for _ in range(5)))
    assert await renderer.render(request(SIMPLE)) == WELL
    assert len(children() - before) == 1
    await renderer.close()
    assert children() - before == set()


async def test_a_signal_to_the_whole_process_group_does_not_end_it(renderer: Renderer) -> None:
    before = children()
    await renderer.render(request(SIMPLE))
    (pid,) = children() - before
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
        assert await renderer.render(request(SIMPLE)) == WELL
    assert children() - before == {pid}


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("template", "message"), [
    (ENDLESS, "time limit"),
    ("{{ 9 ** (9 ** 9) }}", "time limit"),
    ("{{ ('a' * 10 ** 7) | length }}{{ 'a' * (4 * 10 ** 9) }}", "MemoryError|memory limit"),
    ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "its output exceeds"),
    ("{{ messages[0].content.nothing() }}", "UndefinedError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
])  # fmt: skip
async def test_a_template_that_breaks_a_limit_ends_alone(
    renderer: Renderer, template: str, message: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        await renderer.render(request(template))
    assert (caught.value.reason, caught.value.field) == ("CHAT_TEMPLATE_FAILED", "messages")
    assert await renderer.render(request(SIMPLE)) == WELL


async def test_a_template_that_makes_a_forbidden_system_call_is_reported(
    renderer: Renderer,
) -> None:
    before = children()
    await renderer.render(request(SIMPLE))
    (process,) = map(psutil.Process, children() - before)
    process.suspend()
    rendering = asyncio.create_task(renderer.render(request(SIMPLE)))
    await asyncio.sleep(0.05)
    process.send_signal(signal.SIGSYS)  # as the kernel does
    process.resume()
    with pytest.raises(FailedPreconditionError, match="it makes a forbidden system call") as caught:
        await rendering
    assert caught.value.reason == "CHAT_TEMPLATE_FAILED"
    assert await renderer.render(request(SIMPLE)) == WELL


async def test_a_template_that_is_ended_again_and_again_is_left_alone() -> None:
    renderer = Renderer(SETUP, strikes=1)
    huge = request("{{ 9 ** (9 ** 9) }}")
    for message in ("time limit", "1 times in a row", "1 times in a row"):
        with pytest.raises(FailedPreconditionError, match=message) as caught:
            await renderer.render(huge)
    assert caught.value.retry_delay is not None and caught.value.retry_delay <= 60
    assert await renderer.render(request(SIMPLE)) == WELL
    await renderer.close()


async def test_who_shares_a_template_does_not_pay_for_what_another_puts_into_it() -> None:
    renderer = Renderer(SETUP, strikes=1)
    power = "{{ 9 ** (9 ** (8 + (eos_token | length))) }}"
    shared = request(f"{{% if eos_token == '!' %}}{power}{{% endif %}}hi")
    bad = msgspec.structs.replace(shared, own=TemplateTokens(variables={"eos_token": "!"}))
    for message in ("time limit", "1 times in a row"):
        with pytest.raises(FailedPreconditionError, match=message):
            await renderer.render(bad)
    assert await renderer.render(shared) == [Piece("hi", False)]
    await renderer.close()


async def test_a_template_that_refuses_is_the_callers_fault(renderer: Renderer) -> None:
    with pytest.raises(InvalidArgumentError, match="the messages: no system") as caught:
        await renderer.render(request("{{ raise_exception('no system messages') }}"))
    assert caught.value.reason == "CHAT_TEMPLATE_FAILED"


async def test_a_caller_that_gives_up_takes_no_answer_of_the_next(renderer: Renderer) -> None:
    await renderer.render(request(SIMPLE))
    given_up = asyncio.create_task(renderer.render(request(SIMPLE, "old")))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await renderer.render(request(SIMPLE)) == WELL
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_a_caller_that_gives_up_does_not_keep_the_process_from_starting(
    renderer: Renderer,
) -> None:
    before = children()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await renderer.render(request(SIMPLE))
    started = children() - before
    assert len(started) == 1
    assert await renderer.render(request(SIMPLE)) == WELL
    assert children() - before == started


async def test_helpers_work_in_the_sandbox(renderer: Renderer) -> None:
    template = (
        "{{ strftime_now('%Y-%m-%d') | length }} {{ {'a': [1, 'é']} | tojson }} "
        "{{ messages | map(attribute='role') | join(',') }} {{ ['b', 'a'] | sort | first }} "
        "{{ 'x y' | title }} {{ 3.14159 | round(2) }} {{ {'k': 1}.items() | list }} {{ none }}"
    )
    pieces = await renderer.render(request(template))
    wanted = '10 {"a": [1, "é"]} user a X Y 3.14 [(\'k\', 1)] None'
    assert "".join(piece.text for piece in pieces) == wanted


TRIES = {
    "a file": "open('/etc/hostname')",
    "a process": "__import__('os').system('true')",
    "a program": "__import__('subprocess').run(['true'])",
    "a socket": "__import__('socket').socket().connect(('127.0.0.1', 9))",
    "a module": "__import__('sqlite3')",
}


@pytest.mark.parametrize("what", TRIES)
def test_code_that_leaves_the_interpreter_s_sandbox_is_still_confined(what: str) -> None:
    program = (
        "import os, socket, subprocess\n"
        "from loramux_server.chat.worker import MEMORY\n"
        "from loramux_server.confinement.lockdown import lock_down\n"
        "lock_down(MEMORY, 'a template')\n"
        f"try:\n    {TRIES[what]}\nexcept PermissionError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("a template is not allowed to use"), done.stderr
