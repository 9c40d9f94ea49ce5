"""Health probe: whether the engine can generate, or read, a token."""

import asyncio
import logging
from collections.abc import Callable

from loramux.errors import LoramuxError
from loramux_adapters.embedding import Pooling
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Report, Scores, Token
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

_log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a token may take in an idle engine."""


class Probe:
    """Generates a token when no caller's work proves that it can. Lives on the event loop."""

    def __init__(
        self,
        engine: EngineClient,
        model: ModelInfo,
        *,
        interval: float,
        on_result: Callable[[bool], None],
        patience: float = PATIENCE,
    ) -> None:
        """Prepare; nothing happens before `run`.

        Args:
            engine: The engine to probe.
            model: What it serves.
            interval: Seconds without work after which it is probed.
            on_result: Called with whether it is healthy, whenever that changes.
            patience: Seconds that a probe may take.
        """
        self._engine = engine
        prompt, num_source = [model.vocab_size // 2], 0
        if model.writing:
            num_source = len(prompt)
            prompt.append(model.writing.decoder_start)
        self._ask = Ask(
            prompt,
            None,
            Sampling(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True),
            pooling=Pooling.MEAN if model.is_encoder else None,
            num_source=num_source,
        )
        self._interval = interval
        self._on_result = on_result
        self._patience = patience
        self._has_worked = False
        self._is_well = True

    def begin(self) -> None:
        """Assume that an engine that has just started is healthy."""
        self._is_well = True

    def report(self, report: Report) -> None:
        """Process the report of one engine step: a batch that ran is proof enough."""
        if report.batch is not None:
            self._has_worked = True
            self._notify(True)

    async def run(self) -> None:
        """Probe periodically, until cancelled."""
        while True:
            self._has_worked = False
            await asyncio.sleep(self._interval)
            if not self._has_worked and self._engine.process.is_ready:
                self._notify(await self._makes_a_token())

    async def _makes_a_token(self) -> bool:
        mailbox = Mailbox[Token | Scores](on_started=lambda _: None)
        request_id = 0
        try:
            request_id = self._engine.submit(mailbox, 0, self._ask, is_probe=True)
            async with asyncio.timeout(self._patience):
                await mailbox.take()
        except TimeoutError:
            if self._has_worked:  # the probe waits behind requests of callers
                return True
            _log.error("health probe: the engine generated no token within %.3g s", self._patience)
            return False
        except LoramuxError as error:
            # Its death is reported elsewhere, and a full queue does not make it unhealthy.
            _log.info("health probe failed: %s", error)
            return True
        finally:
            self._engine.cancel(request_id)
        return True

    def _notify(self, is_well: bool) -> None:
        if is_well != self._is_well:
            self._is_well = is_well
            self._on_result(is_well)
