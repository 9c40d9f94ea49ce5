"""Whether a base model computes the same with our parts in it as on its own.

What is served goes other ways than transformers' own forward: several requests in one row of
tokens, positions from outside, no mask, a paged cache, packed layers. A model may read any of these
in a way of its own, and would then be wrong without a word; so two short sequences go both ways
when it is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.states import BEGINNING, Kept, StateBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Int32
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.quantized import rounds_inputs
from loramux_server.models.recurrent import Recurrent
from loramux_server.models.step import Step

_LENGTHS = (7, 12)
_CUTS = ((3,), (5,))
"""Where each sequence is cut: the first pieces run in one batch, the others in the next."""
_CUTS_OF_STATES = ((3, 4, 6), (5, 10, 11))
"""The same for models with recurrent layers, for which single tokens are something else."""
_BLOCK_SIZE = 4
_TABLE_BM = np.array([[4, 1, 0], [2, 0, 3]], np.int32)
"""Neighbouring blocks of a sequence do not lie side by side."""
_NOT_A_SCORE = 1e6
"""Models write -inf or the least number of the format where a token can never come."""


class SelfCheck:
    """Two sequences and what `module` makes of them before its layers are packed."""

    def __init__(
        self, module: PreTrainedModel, step: Step, bridge: AttentionBridge, recurrent: Recurrent
    ) -> None:
        """Run `module` on one sequence at a time, with transformers' own plain attention."""
        self._module = module
        self._step = step
        self._bridge = bridge
        self._recurrent = recurrent
        cuts = _CUTS_OF_STATES if recurrent.states else _CUTS
        self._spans = [
            list(zip((0, *inner), (*inner, length), strict=True))
            for inner, length in zip(cuts, _LENGTHS, strict=True)
        ]
        """Of each sequence, what runs in one batch after another."""
        self._sequences = _sequences(module)
        self._rounds_inputs = rounds_inputs(module)
        module.set_attn_implementation("eager")
        with torch.inference_mode():
            self._own_TV = torch.cat([
                module(input_ids=tokens[None], use_cache=False).logits[0].float()
                for tokens in self._sequences
            ])  # fmt: skip
        module.set_attn_implementation(bridge.name)

    def move(self, device: torch.device) -> None:
        """Bring what is compared to `device`, where `module` and its layers are by now."""
        self._sequences = [tokens.to(device) for tokens in self._sequences]
        self._own_TV = self._own_TV.to(device)

    def difference(self, stack: DecoderStack | None) -> float:
        """Return how far the served logits are from the model's own, relative to their spread."""
        with self._small_cache():
            if stack:
                stack.prepare()
            served_TV = torch.cat(self._in_batches())
        own_TV = self._own_TV
        is_score = own_TV.abs() < _NOT_A_SCORE
        # One rounding of a logit, however large they all are, is no error.
        rounding_TV = torch.finfo(self._module.dtype).eps * own_TV.abs()
        error = torch.where(is_score, ((served_TV - own_TV).abs() - rounding_TV).relu(), 0.0)
        spread = torch.where(is_score, own_TV - own_TV.mean(-1, keepdim=True), 0.0)
        return float(error.norm() / spread.norm())

    def is_invariant(self, stack: DecoderStack | None) -> bool:
        """Return whether the logits are the same to the last bit however the work is cut up."""
        numbers = range(len(_LENGTHS))
        with self._small_cache():
            if stack:
                stack.prepare()
            together = self._in_batches()
            whole = [self._serve([(0, _LENGTHS[n])], [n])[0] for n in numbers]
            one_by_one = [
                torch.cat([self._serve([(t, t + 1)], [n])[0] for t in range(_LENGTHS[n])])
                for n in numbers
            ]
        return all(
            torch.equal(together[n], whole[n]) and torch.equal(together[n], one_by_one[n])
            for n in numbers
        )

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        rounding = 16 * torch.finfo(self._module.dtype).eps
        # Where two experts score nearly the same, rounding decides which of them runs; where inputs
        # are rounded to 8 bits as well, which of 255 numbers one becomes.
        is_coarse = _has_experts(self._module.config.get_text_config()) or self._rounds_inputs
        return rounding + (0.1 if is_coarse else 1e-3)

    @contextmanager
    def _small_cache(self) -> Iterator[None]:
        """Give attention a KV cache for the block, and take everything back after it."""
        num_slots = _BLOCK_SIZE * (int(_TABLE_BM.max()) + 1)
        self._bridge.allocate(num_slots, self._module.dtype, self._module.device)
        self._recurrent.allocate(BEGINNING + 1 + 2 * len(_LENGTHS), self._module.device)
        try:
            yield
        finally:
            self._step.attention = None
            self._bridge.release()
            self._recurrent.release()

    def _in_batches(self) -> list[torch.Tensor]:
        """Return the logits of each sequence, computed in batches of both."""
        served = [self._serve(list(spans)) for spans in zip(*self._spans, strict=True)]
        return [torch.cat(pieces) for pieces in zip(*served, strict=True)]

    def _serve(
        self, spans: list[tuple[int, int]], numbers: Sequence[int] = (0, 1)
    ) -> list[torch.Tensor]:
        """Return the logits of one span of each sequence of `numbers`, computed in one batch."""
        table_BM = _TABLE_BM[list(numbers)]
        starts, ends = (np.array(side, np.int32) for side in zip(*spans, strict=True))
        query_start = np.cumsum([0, *(ends - starts)], dtype=np.int32)
        positions = [np.arange(start, end) for start, end in spans]
        slots = [
            blocks[at // _BLOCK_SIZE].astype(np.int64) * _BLOCK_SIZE + at % _BLOCK_SIZE
            for blocks, at in zip(table_BM, positions, strict=True)
        ]
        tokens = torch.cat([
            self._sequences[n][start:end] for n, (start, end) in zip(numbers, spans, strict=True)
        ])  # fmt: skip
        given = self._step.take(
            StepInput(
                token_T=tokens.cpu(),
                position_T=torch.from_numpy(np.concatenate(positions)),
                # Backwards, to see that the model gives the rows that it is asked for.
                sampled_R=torch.arange(len(tokens) - 1, -1, -1),
                attention=AttentionBatch(
                    query_start_B=query_start,
                    context_B=ends,
                    table_BM=table_BM,
                    block_size=_BLOCK_SIZE,
                    slot_T=torch.from_numpy(np.concatenate(slots)),
                ),
                segments=None,
                states=self._states(starts, ends, numbers),
            )
        )
        with torch.inference_mode():
            output = self._module(
                input_ids=given.token_T[None],
                position_ids=given.position_T[None],
                use_cache=False,
                logits_to_keep=given.sampled_R,
            )
        logits_TV = output.logits[0][: len(tokens)].float()
        return list(torch.split(logits_TV.flip(0), (ends - starts).tolist()))

    def _states(self, starts: Int32, ends: Int32, numbers: Sequence[int]) -> StateBatch | None:
        if not self._recurrent.states:
            return None
        own = np.array(numbers) + BEGINNING + 1
        kept: list[Kept] = []
        if self._recurrent.goes_on:
            # Whatever is kept on the way, its request goes through a layer as one part and another.
            spare = (own + len(_LENGTHS)).tolist()
            kept += [Kept(b, 2, spare[b]) for b in np.flatnonzero(ends - starts > 3).tolist()]
        return StateBatch(np.where(starts, own, BEGINNING), own, tuple(kept))


def _sequences(module: PreTrainedModel) -> list[torch.Tensor]:
    config = module.config.get_text_config()
    # Padding, images and the like may mean more to a model than their embedding.
    special = {
        value
        for name, value in [*config.to_dict().items(), *module.config.to_dict().items()]
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    ordinary = [token for token in range(config.vocab_size) if token not in special]
    chosen = np.random.default_rng(0).choice(ordinary, sum(_LENGTHS))
    return list(torch.split(torch.from_numpy(chosen).to(module.device), [*_LENGTHS]))


def _has_experts(config: PreTrainedConfig) -> bool:
    return any(
        "expert" in name and isinstance(value, int) and value > 1
        for name, value in config.to_dict().items()
    )
