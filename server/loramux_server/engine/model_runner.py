"""Batch -> logits; allocates the KV cache, and owns the adapters' slab."""

from typing import Any

import torch

from loramux_server.engine.batch import Batch, PromptTokens, ReadTokens
from loramux_server.engine.flight import Chosen, DeviceOutcome
from loramux_server.engine.graphs import Graphs
from loramux_server.engine.sampler import are_finite, likeliest
from loramux_server.kernels.adjust import adjust
from loramux_server.kernels.backend import Backend
from loramux_server.kernels.logprobs import logprobs
from loramux_server.kernels.prompt_logprobs import prompt_logprobs
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.buffer_pool import BufferPool
from loramux_server.lora.edits import Edits
from loramux_server.lora.extended_slab import ExtendedSlab
from loramux_server.lora.slab import Slab, row_bytes
from loramux_server.models.base_model import BaseModel
from loramux_server.models.hidden import given_hidden, hidden_states, last_hidden
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.sampling import MAX_LOGPROBS

PIECE_BYTES = 32 << 20
"""Bytes of logits in memory at once while log-probabilities of a prompt are computed."""


class ModelRunner:
    """Runs the base model, with each row's adapter, batch by batch."""

    def __init__(
        self,
        model: BaseModel,
        backend: Backend,
        *,
        num_slots: int,
        num_state_slots: int = 0,
        adapter_memory: int,
        buffers: BufferPool | None = None,
        records: bool = True,
    ) -> None:
        """Allocate the cache and the slab.

        Args:
            model: The prepared base model.
            backend: The operations to use.
            num_slots: Tokens that the KV cache holds.
            num_state_slots: Slots for recurrent states, including `BEGINNING`.
            adapter_memory: Bytes for the adapters' rank rows.
            buffers: Host memory for adapters, if a device copies them from there.
            records: Whether a GPU replays steps from CUDA graphs.
        """
        self.slab = _make_slab(model, backend, adapter_memory, buffers)
        model.step.backend = backend
        for group in model.groups:
            group.attach(self.slab, backend)
        for experts in model.experts.values():
            experts.attach(backend)
        if model.output:
            model.output.attach(backend)
            model.embedding.attach(model.output)
        self.difference = _difference(model, backend)
        """How far its logits are from the model's own forward, relative to their spread."""
        self.is_invariant = backend.is_deterministic and model.check.is_invariant(model.stack)
        """Whether its logits are known to be batch-invariant, bit for bit."""
        model.attention.allocate(num_slots, model.dtype, model.device)
        model.recurrent.allocate(num_state_slots, model.device)
        if model.stack:
            # In steps with edits before or behind the layers, only the layers are captured.
            model.stack.prepare(Graphs[torch.Tensor](model.device, is_used=records).run)
        self._model = model
        self._draw = backend.draw
        self._graphs = Graphs[Chosen](model.device, is_used=records)
        self._kept_logits: dict[int, torch.Tensor] = {}
        """Output buffers of all CUDA graphs, by number of rows."""

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them, float32, as [R, V]."""
        given = self._take(batch)
        # Graphs are shared with `start`, so they choose tokens, too. If the leader reads hidden
        # states, it does so eagerly, and a follower must run the same all-reduces.
        if given.graph_key is None or given.reads_hidden:
            logits_RV = self._logits(given)
        else:
            logits_RV = self._graphs.run(given.graph_key, lambda: self._chosen(given)).logits_RV
        self.slab.note_step()
        return logits_RV[: batch.num_rows]

    @torch.inference_mode()
    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and the results of `batch.read`, one each, on the host."""
        given = self._take(batch)
        with last_hidden(self._model.runs) as found:
            logits_RV = self._logits(given)
        self.slab.note_step()
        (output,) = found
        read = [self._read(given, part, output) for part in batch.read]
        return logits_RV[: batch.num_rows], read

    @torch.inference_mode()
    def start(self, batch: Batch, before: DeviceOutcome | None) -> DeviceOutcome:
        """Start a step after `before`, which may be in flight and provides input tokens."""
        given = self._take(batch)
        if before is not None:
            assert given.carried_T is not None
            tokens = given.token_T[: len(given.carried_T)]
            torch.index_select(before.token_R, 0, given.carried_T, out=tokens)
        chosen = self._graphs.run(given.graph_key, lambda: self._chosen(given))
        self.slab.note_step()
        return DeviceOutcome(chosen, batch.requests)

    def _take(self, batch: Batch) -> StepInput:
        """Make the input of `batch` the current step."""
        for run in batch.input.cached:
            self._model.attention.fill(run)
        return self._model.step.take(batch.input)

    def _chosen(self, given: StepInput) -> Chosen:
        logits_RV = self._logits(given)
        if given.graph_key is not None:
            logits_RV = self._shared(logits_RV)
        token_R = likeliest(logits_RV)
        is_finite_R, adjusted_RV = are_finite(logits_RV, token_R), logits_RV
        if given.adjustments is not None:
            input_R = given.token_T.index_select(0, given.sampled_R)
            adjusted_RV = adjust(logits_RV, input_R, given.adjustments)
            token_R = likeliest(adjusted_RV)
        if given.draws is not None:
            token_R = self._draw(adjusted_RV, token_R, given.draws)
        logprobs_RL = None
        if given.returns_logprobs:
            count = min(MAX_LOGPROBS, logits_RV.shape[1])
            logprobs_RL = logprobs(logits_RV, token_R, count)
        return Chosen(logits_RV, token_R, is_finite_R, logprobs_RL)

    def _shared(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """Return a copy in a buffer that all graphs share, since each graph keeps its own outputs.

        It is allocated before any capture: the first step of a key runs eagerly.
        """
        num_rows = len(logits_RV)
        if num_rows not in self._kept_logits:
            self._kept_logits[num_rows] = torch.empty_like(logits_RV)
        return self._kept_logits[num_rows].copy_(logits_RV)

    def _read(
        self,
        given: StepInput,
        part: ReadTokens | PromptTokens,
        output: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return the result of `part`, on the host; `output` is what `last_hidden` kept."""
        if isinstance(part, ReadTokens):
            return part.head(hidden_states(output)[part.rows]).cpu()
        count = part.request.sampling.num_prompt_logprobs
        assert count is not None
        vocab_size = part.request.own_vocab_size or self._model.vocab_size
        # Logits of all tokens at once could take a thousand times the memory of the step.
        size = max(1, PIECE_BYTES // (4 * vocab_size))
        device = given.token_T.device
        results = [torch.empty(0, 2 + 2 * count, dtype=torch.float64)]
        with given_hidden(self._model.module, output):
            for first in range(0, len(part.tokens), size):
                tokens = part.tokens[first : first + size]
                place_R = torch.arange(len(tokens)) + part.rows.start + first
                logits_RV = self._logits(given.at(place_R))[:, :vocab_size]
                token_R = torch.tensor(tokens, device=device)
                results.append(prompt_logprobs(logits_RV, token_R, count).cpu())
        return torch.cat(results)

    def _logits(self, given: StepInput) -> torch.Tensor:
        with self._model.editor.editing(given):
            output = self._model.runs(
                input_ids=given.token_T[None],
                position_ids=given.position_ids,
                use_cache=False,
                logits_to_keep=given.sampled_R,
            )
        logits_RV: torch.Tensor = output.logits[0]
        return masked(logits_RV.float(), given, self._model.vocab_size)


def masked(logits_RV: torch.Tensor, given: StepInput, vocab_size: int) -> torch.Tensor:
    """Return `logits_RV` with -inf for tokens outside the vocabulary of a row's adapter.

    Args:
        logits_RV: Logits over the largest vocabulary of any adapter.
        given: The step.
        vocab_size: Vocabulary size of the base.
    """
    segments = given.segments
    if segments is None or segments.edits is None or not any(map(_own_size, segments.edits)):
        return logits_RV
    size_R = torch.full_like(given.sampled_R, vocab_size)
    for rows, edits in zip(given.rows_S, segments.edits, strict=True):
        size_R[rows] = _own_size(edits) or vocab_size
    token_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    return logits_RV.masked_fill(token_V >= size_R[:, None], float("-inf"))


def _difference(model: BaseModel, backend: Backend) -> float:
    """Return how far logits are from the model's own forward.

    Raises:
        UnservableModelError: The kernels do not run here.
    """
    try:
        return model.check.difference(model.stack)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise many kinds
        reason = str(error).partition("\n")[0]
        raise UnservableModelError(
            f"kernels {backend.name!r} cannot run {model.architecture} in {model.dtype} here: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _own_size(edits: Edits | None) -> int:
    return edits.vocab_size if edits else 0


def _make_slab(
    model: BaseModel, backend: Backend, adapter_memory: int, buffers: BufferPool | None
) -> Slab:
    shapes = [group.shape for group in model.groups]
    if backend.extends:
        num_rows = adapter_memory // row_bytes(shapes, model.dtype.itemsize)
        is_plain = [group.is_plain for group in model.groups]
        return ExtendedSlab(shapes, num_rows, model.device, model.dtype, is_plain, buffers)
    return Slab(shapes, adapter_memory // row_bytes(shapes), model.device)
