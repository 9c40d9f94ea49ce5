"""Whether a base model computes the same with our parts in it as on its own.

Serving differs from transformers' own forward: several requests in one row of tokens, explicit
positions, no mask, a paged cache, packed layers. A model may treat any of these in its own way, and
would silently be wrong. So two short sequences run both ways when it is loaded; with vision, also
one with an image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.states import BEGINNING, KeptState, StateBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Int32
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.editor import Editor
from loramux_server.models.quantized import rounds_inputs
from loramux_server.models.recurrent.recurrent import Recurrent
from loramux_server.models.step import Step
from loramux_server.models.vision.prompt_images import PromptImages, positions

_LENGTHS = (7, 12)
_SPLITS = ((3,), (5,))
"""Where each sequence is cut: the first pieces run in one batch, the others in the next."""
_RECURRENT_SPLITS = ((3, 4, 6), (5, 10, 11))
"""The same for models with recurrent layers, which treat single tokens differently."""
_BLOCK_SIZE = 4
_TABLE_BM = np.array([[4, 1, 0], [2, 0, 3]], np.int32)
"""Adjacent blocks of a sequence are not adjacent in the cache."""
_NOT_A_SCORE = 1e6
"""Models write -inf or the dtype's minimum for tokens that can never occur."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence that is run both ways."""

    token_T: torch.Tensor
    spans: list[tuple[int, int]]
    """Its pieces, which run in successive batches."""
    block_M: Int32
    """Its KV blocks; adjacent ones are not adjacent in the cache."""
    own: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Further arguments for the model's own forward."""
    encode_images: Callable[[], PromptImages] | None = None
    """Encodes the images in it; None if it has none."""


class SelfCheck:
    """Some sequences, and the model's own logits for them from before its layers are packed."""

    def __init__(
        self,
        module: PreTrainedModel,
        step: Step,
        bridge: AttentionBridge,
        recurrent: Recurrent,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        """Run `module` on one sequence at a time, with transformers' eager attention.

        Args:
            module: The model.
            step: The step object of its layers.
            bridge: Its attention.
            recurrent: Its recurrent layers.
            samples: The sequences; two of text by default.
        """
        self._module = module
        self._step = step
        self._bridge = bridge
        self._recurrent = recurrent
        self._samples = samples or _texts(
            module, _RECURRENT_SPLITS if recurrent.states else _SPLITS
        )
        self._rounds_inputs = rounds_inputs(module)
        module.set_attn_implementation("eager")
        with torch.inference_mode():
            self._own_TV = torch.cat([
                module(input_ids=each.token_T[None], use_cache=False, **each.own).logits[0].float()
                for each in self._samples
            ])  # fmt: skip
        module.set_attn_implementation(bridge.name)

    def set_spans(self, spans: list[tuple[int, int]]) -> None:
        """Change the pieces of the only sequence."""
        (sample,) = self._samples
        self._samples = [replace(sample, spans=spans)]

    def move(self, device: torch.device) -> None:
        """Move the samples and reference logits to `device`, where `module` is already."""
        self._samples = [replace(s, token_T=s.token_T.to(device)) for s in self._samples]
        self._own_TV = self._own_TV.to(device)

    def difference(self, stack: DecoderStack | None, editor: Editor | None = None) -> float:
        """Return how far the served logits are from the model's own, relative to their spread.

        Args:
            stack: The fused layers, if any.
            editor: Inserts embeddings of images, if there are any.
        """
        with self._small_cache():
            if stack:
                stack.prepare()
            served_TV = torch.cat(self._in_batches(editor))
        own_TV = self._own_TV
        is_score = own_TV.abs() < _NOT_A_SCORE
        # A rounding error of a logit, however large the logits are, does not count.
        rounding_TV = torch.finfo(self._module.dtype).eps * own_TV.abs()
        error = torch.where(is_score, ((served_TV - own_TV).abs() - rounding_TV).relu(), 0.0)
        spread = torch.where(is_score, own_TV - own_TV.mean(-1, keepdim=True), 0.0)
        return float(error.norm() / spread.norm())

    def is_invariant(self, stack: DecoderStack | None) -> bool:
        """Return whether the logits are bitwise independent of how the work is batched."""
        numbers = range(len(self._samples))
        lengths = [len(sample.token_T) for sample in self._samples]
        with self._small_cache():
            if stack:
                stack.prepare()
            together = self._in_batches()
            whole = [self._serve([(0, lengths[n])], [n])[0] for n in numbers]
            one_by_one = [
                torch.cat([self._serve([(t, t + 1)], [n])[0] for t in range(lengths[n])])
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
        # When two experts score nearly the same, rounding decides which one runs. When inputs are
        # also rounded to 8 bits, it decides their value.
        is_coarse = _has_experts(self._module.config.get_text_config()) or self._rounds_inputs
        return rounding + (0.1 if is_coarse else 1e-3)

    @contextmanager
    def _small_cache(self) -> Iterator[None]:
        """Allocate a small KV cache and state slots for the block, and free them after it."""
        num_slots = _BLOCK_SIZE * (max(int(each.block_M.max()) for each in self._samples) + 1)
        self._bridge.allocate(num_slots, self._module.dtype, self._module.device)
        self._recurrent.allocate(BEGINNING + 1 + 2 * len(self._samples), self._module.device)
        try:
            yield
        finally:
            self._step.attention = None
            self._bridge.release()
            self._recurrent.release()

    def _in_batches(self, editor: Editor | None = None) -> list[torch.Tensor]:
        """Return the logits of each sequence, computed in batches of all sequences."""
        numbers = range(len(self._samples))
        together = zip(*(sample.spans for sample in self._samples), strict=True)
        served = [self._serve(list(spans), numbers, editor) for spans in together]
        return [torch.cat(pieces) for pieces in zip(*served, strict=True)]

    def _serve(
        self, spans: list[tuple[int, int]], numbers: Sequence[int], editor: Editor | None = None
    ) -> list[torch.Tensor]:
        """Return the logits of one span of each of the sequences `numbers`, run in one batch."""
        samples = [self._samples[n] for n in numbers]
        table_BM = np.stack([sample.block_M for sample in samples])
        starts, ends = (np.array(side, np.int32) for side in zip(*spans, strict=True))
        query_start = np.cumsum([0, *(ends - starts)], dtype=np.int32)
        positions = [np.arange(start, end) for start, end in spans]
        slots = [
            blocks[at // _BLOCK_SIZE].astype(np.int64) * _BLOCK_SIZE + at % _BLOCK_SIZE
            for blocks, at in zip(table_BM, positions, strict=True)
        ]
        tokens = torch.cat([
            sample.token_T[start:end] for sample, (start, end) in zip(samples, spans, strict=True)
        ])  # fmt: skip
        given = StepInput(
            token_T=tokens.cpu(),
            position_T=torch.from_numpy(np.concatenate(positions)),
            # In reverse, to check that the model returns the requested rows.
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
        image_encoders = [sample.encode_images for sample in samples]
        if image_encoders[0] is not None:  # a sample with images is the only one
            given = _with_images(given, image_encoders[0](), *spans[0])
        given = self._step.take(given)
        with torch.inference_mode(), editor.editing(given) if editor else nullcontext():
            output = self._module(
                input_ids=given.token_T[None],
                position_ids=given.position_ids,
                use_cache=False,
                logits_to_keep=given.sampled_R,
            )
        logits_TV = output.logits[0][: len(tokens)].float()
        return list(torch.split(logits_TV.flip(0), (ends - starts).tolist()))

    def _states(self, starts: Int32, ends: Int32, numbers: Sequence[int]) -> StateBatch | None:
        if not self._recurrent.states:
            return None
        own = np.array(numbers) + BEGINNING + 1
        kept: list[KeptState] = []
        if self._recurrent.supports_continuation:
            # Keeping an intermediate state makes a request run through a layer in two parts.
            spare = (own + len(self._samples)).tolist()
            kept += [KeptState(b, 2, spare[b]) for b in np.flatnonzero(ends - starts > 3).tolist()]
        return StateBatch(np.where(starts, own, BEGINNING), own, tuple(kept))


def ordinary_tokens(module: PreTrainedModel, count: int) -> torch.Tensor:
    """Return `count` tokens that are plain text to `module`, always the same ones."""
    config = module.config.get_text_config()
    # Padding, image tokens and the like may be more than an embedding to a model.
    special = {
        value
        for name, value in [*config.to_dict().items(), *module.config.to_dict().items()]
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    ordinary = [token for token in range(config.vocab_size) if token not in special]
    chosen = np.random.default_rng(0).choice(ordinary, count)
    return torch.from_numpy(chosen).to(module.device)


def sample_of_image(
    token_T: torch.Tensor,
    own: Mapping[str, torch.Tensor],
    encode_images: Callable[[], PromptImages],
) -> Sample:
    """Return a sequence with an image, cut in the middle and before its last token."""
    length = len(token_T)
    spans = [(0, length // 2), (length // 2, length - 1), (length - 1, length)]
    block_M = np.arange(-(-length // _BLOCK_SIZE), dtype=np.int32)[::-1].copy()
    return Sample(token_T, spans, block_M, own, encode_images)


def _texts(module: PreTrainedModel, cuts: tuple[tuple[int, ...], ...]) -> list[Sample]:
    sequences = torch.split(ordinary_tokens(module, sum(_LENGTHS)), [*_LENGTHS])
    return [
        Sample(token_T, list(zip((0, *inner), (*inner, len(token_T)), strict=True)), block_M)
        for token_T, inner, block_M in zip(sequences, cuts, _TABLE_BM, strict=True)
    ]


def _with_images(given: StepInput, images: PromptImages, start: int, end: int) -> StepInput:
    """Return a step of tokens `start` to `end` of one sequence, with its images inserted."""
    position_T, position_3T = positions(images.mrope_positions(start, end))
    together = images.bidirectional_ranges(start, end) if images.is_bidirectional else None
    return replace(
        given,
        position_T=position_T,
        position_3T=position_3T,
        attention=replace(given.attention, bidirectional_T2=together),
        embedded=tuple(images.embedded(start, end, 0)),
        added=tuple(map(tuple, images.added(start, end, 0))),
    )


def _has_experts(config: PreTrainedConfig) -> bool:
    return any(
        "expert" in name and isinstance(value, int) and value > 1
        for name, value in config.to_dict().items()
    )
