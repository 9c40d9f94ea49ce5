"""The engine core in this process, stepped by hand."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from loramux_adapters.embedding import Pooling
from loramux_server.engine.build import build_engine
from loramux_server.engine.pace import Pace
from loramux_server.engine.team import Team
from loramux_server.images.messages import PlacedImage
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import (
    Cancel,
    Failure,
    PromptLogprobs,
    Report,
    Scores,
    Submit,
    Token,
)
from loramux_server.wire.sampling import Sampling


class InlineExecutor(Executor):
    """Runs what it is given at once, on the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SteadyPace(Pace):
    """Knows what a drafted token costs, however quick or busy this machine is."""

    def part_of_draft(self, prompt_tokens: int) -> float:
        return 0.02


class Harness:
    """An engine, the requests given to it and what came of them."""

    def __init__(
        self, model: PreTrainedModel | BaseModel, *, num_blocks: int | None = None,
        rows: int | None = None, threads: bool = False, team: Team | None = None, **config: Any,
    ) -> None:  # fmt: skip
        base = model if isinstance(model, BaseModel) else prepare(model)
        config.setdefault("kernels", "torch")
        config.setdefault("block_size", 4)
        config.setdefault("speculative_tokens", 0)
        if num_blocks is not None:
            weights = sum(shape.weights for shape in base.cache_shapes)
            config["kv_memory"] = num_blocks * config["block_size"] * weights * base.dtype.itemsize
            # What recurrent layers know has as much at most, and no more than twice what can run.
            most_states = (1 + 2 * config.get("max_running", 64)) * base.recurrent.slot_bytes
            config["kv_memory"] += min(config["kv_memory"], most_states)
            config["kv_memory"] = max(config["kv_memory"], 12 * base.recurrent.slot_bytes)
        # Of the usual gigabyte nothing is touched, but where many engines wait to be collected, a
        # process cannot fork any more.
        config.setdefault("adapter_memory", 64 << 20)
        if rows is not None:
            config["adapter_memory"] = rows * 4 * sum(g.shape.row_weights for g in base.groups)
        self.executor = ThreadPoolExecutor(2) if threads else InlineExecutor()
        self.engine, self.info = build_engine(
            base, EngineConfig(model="tiny", **config), self.executor, lambda: None, team
        )
        self.engine._image_encoder._executor = self.executor
        if config["speculative_tokens"]:
            self.engine._pace = SteadyPace(max_stall=0.0)
        self.tokens: dict[int, list[Token]] = {}
        self.scores: dict[int, Scores] = {}
        self.prompts: dict[int, PromptLogprobs] = {}
        self.failures: dict[int, Failure] = {}
        self.reports: list[Report] = []
        self._finished: set[int] = set()

    def submit(
        self,
        prompt: Iterable[int],
        adapter: AdapterSource | None = None,
        *,
        pooling: Pooling | None = None,
        prediction: Iterable[int] = (),
        images: Iterable[PlacedImage] = (),
        tenant: str = "",
        second_from: int = 0,
        num_source: int = 0,
        **sampling: Any,
    ) -> int:
        """Give the engine a request; greedy, to its full length, unless `sampling` says else.

        With `pooling`, the prompt is embedded.
        """
        request_id = len(self.tokens)
        defaults = {"max_tokens": 8, "seed": 0, "temperature": 0.0, "ignore_eos": True}
        self.tokens[request_id] = []
        chosen = Sampling(**defaults | sampling)
        ask = Ask(
            list(prompt), adapter, chosen, tenant, pooling=pooling, prediction=list(prediction),
            images=list(images), second_from=second_from, num_source=num_source,
        )  # fmt: skip
        self.engine.receive([Submit(request_id, ask)])
        return request_id

    def cancel(self, request_id: int) -> None:
        self._finished.add(request_id)
        self.engine.receive([Cancel(request_id)])

    def step(self) -> Report:
        report = self.engine.step()
        self.engine.check()
        self.reports.append(report)
        for prompt in report.prompts:
            assert prompt.request_id not in self.prompts and not self.tokens[prompt.request_id]
            self.prompts[prompt.request_id] = prompt
            if prompt.finish:
                self._finished.add(prompt.request_id)
        for token in report.tokens:
            self.tokens[token.request_id].append(token)
            if token.finish:
                self._finished.add(token.request_id)
        for scores in report.scores:
            self.scores[scores.request_id] = scores
            self._finished.add(scores.request_id)
        for failure in report.failures:
            self.failures[failure.request_id] = failure
            self._finished.add(failure.request_id)
        return report

    def run(self, max_steps: int = 2000) -> None:
        """Step until every request has ended."""
        for _ in range(max_steps):
            if len(self._finished) == len(self.tokens):
                return
            self.step()
        raise AssertionError(f"requests still open after {max_steps} steps")

    def logits(self, request_id: int, num_labels: int) -> torch.Tensor:
        """Return what came of a text, or of each of its tokens, [R, numbers of each]."""
        found = np.frombuffer(self.scores[request_id].numbers, np.float32)
        return torch.from_numpy(found.copy()).reshape(-1, num_labels)

    def prompt_logprobs(self, request_id: int) -> torch.Tensor:
        """Return what `kernels.prompt_logprobs` tells of each token of a prompt but the first."""
        found = np.frombuffer(self.prompts[request_id].numbers, np.float64)
        return torch.from_numpy(found.copy())

    def output(self, request_id: int) -> list[int]:
        return [token.token for token in self.tokens[request_id]]
