"""What health checks are told of an engine that does nothing."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.probe import Probe
from loramux_server.engine_link.quarantine import Quarantine
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import (
    BatchSize,
    CacheStats,
    Cancel,
    Finish,
    Report,
    Stats,
    Submit,
    ToEngine,
    Token,
)

STATS = Stats(
    running=0, waiting=0, used_blocks=0, preemptions=0, prompt_tokens=0, shared_tokens=0,
    device=CacheStats(), host=CacheStats(),
)  # fmt: skip
INTERVAL = 0.02


class Engine(EngineClient):
    """An engine that makes tokens, or does not."""

    def __init__(self) -> None:
        super().__init__(
            EngineConfig(model=""), on_report=print, on_ready=print, quarantine=Quarantine(2)
        )
        self.sent: list[ToEngine] = []
        self.is_well = True
        self.on_submit: Callable[[], object] = lambda: None
        self.process: Any = SimpleNamespace(
            is_ready=True, send=self._take, seconds_to_ready=1.0, ran_out_of_memory=False
        )

    @property
    def num_probes(self) -> int:
        return sum(isinstance(message, Submit) for message in self.sent)

    def _take(self, message: ToEngine) -> None:
        self.sent.append(message)
        if isinstance(message, Submit):
            self.on_submit()
        if self.is_well and isinstance(message, Submit):
            token = Token(message.request_id, 1, Finish.LENGTH)
            self._dispatch(Report(stats=STATS, tokens=[token]))


class Probed:
    """An engine, and what was told of it."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.reported: list[bool] = []
        model: Any = SimpleNamespace(vocab_size=64, writing=None, is_encoder=False)
        self.probe = Probe(
            self.engine, model, interval=INTERVAL, on_result=self.reported.append, patience=INTERVAL
        )


@pytest.fixture
async def probed() -> Any:
    probed = Probed()
    task = asyncio.create_task(probed.probe.run())
    yield probed
    task.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(INTERVAL / 4)


async def test_an_engine_that_makes_no_token_is_not_well_until_it_does(probed: Probed) -> None:
    probed.engine.is_well = False
    await until(lambda: probed.reported == [False])
    assert isinstance(probed.engine.sent[-1], Cancel)  # nothing is left behind
    probed.engine.is_well = True
    await until(lambda: probed.reported == [False, True])


async def test_work_of_callers_is_proof_enough(probed: Probed) -> None:
    probed.engine.is_well = False
    for _ in range(20):
        probed.probe.report(Report(stats=STATS, batch=BatchSize(1, 1, 0, 0.1)))
        await asyncio.sleep(INTERVAL / 4)
    assert probed.reported == []
    assert probed.engine.num_probes == 0


async def test_a_probe_that_waits_behind_the_work_of_callers_proves_nothing(
    probed: Probed,
) -> None:
    engine = probed.engine
    engine.is_well = False
    engine.on_submit = lambda: probed.probe.report(
        Report(stats=STATS, batch=BatchSize(1, 1, 0, 0.1))
    )
    await until(lambda: engine.num_probes == 2)
    assert probed.reported == []
    engine.on_submit = lambda: None
    await until(lambda: probed.reported == [False])


async def test_a_probe_is_never_in_quarantine(probed: Probed) -> None:
    engine = probed.engine
    engine.is_well = False
    engine.on_submit = lambda: engine._ready_or_dead(False)
    await until(lambda: engine.num_probes == 3)
    assert engine.quarantine.entries == []


async def test_an_engine_that_is_away_is_left_alone(probed: Probed) -> None:
    probed.engine.process.is_ready = False
    await asyncio.sleep(4 * INTERVAL)
    assert probed.engine.num_probes == 0
    assert probed.reported == []


async def test_the_next_engine_is_well_until_it_shows_otherwise(probed: Probed) -> None:
    probed.engine.is_well = False
    await until(lambda: probed.reported == [False])
    probed.probe.begin()
    await until(lambda: probed.reported == [False, False])
