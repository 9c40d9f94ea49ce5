"""The same model in PEFT's mixed batch and in transformers' own continuous batching."""

import time
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig

from benchmarks.fixture import Shape
from benchmarks.gpu.served import dtype_of, make_model

_TOKENS = 16
_COUNTS = (1, 8, 32)


def peft(
    shape: Shape, device: torch.device, adapter: Path, batch: int, context: int
) -> list[tuple[int, float]]:
    """Return output tokens per second of PEFT's mixed batch for each number of adapters.

    Of a static batch of `batch` prompts of `context` tokens, prefill left out: two runs, of few
    tokens and of more, and the difference between them.
    """
    warnings.simplefilter("ignore")
    counts = [count for count in _COUNTS if count <= batch]
    model = PeftModel.from_pretrained(
        make_model(shape, device, dtype_of(device)), str(adapter), adapter_name="0"
    )
    for number in range(1, counts[-1]):
        model.load_adapter(str(adapter), adapter_name=str(number))
    model.eval()
    tokens = torch.randint(3, shape.vocab, (batch, context), device=device)
    points = []
    for count in reversed(counts):
        names = [str(row % count) for row in range(batch)]
        few, more = (_generate(model, tokens, names, length) for length in (2, 2 + _TOKENS))
        points.append((count, batch * _TOKENS / (more - few)))
        print(f"PEFT, {count} adapters: {points[-1][1]:.0f} tokens/s", flush=True)
    return sorted(points)


@torch.inference_mode()
def _generate(model: PeftModel, tokens: torch.Tensor, names: list[str], length: int) -> float:
    begin = time.perf_counter()
    model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length,
        min_new_tokens=length, do_sample=False, pad_token_id=0, adapter_names=names,
    )  # fmt: skip
    _synchronize()
    return time.perf_counter() - begin


def continuous_batching(
    shape: Shape, device: torch.device, batch: int, context: int
) -> dict[str, object]:
    """Return output tokens per second of the base in transformers' continuous batching.

    Likewise: the difference between runs of few tokens and of more. Where it does not run with the
    attention that is there, why.
    """
    model = make_model(shape, device, dtype_of(device))
    prompts = torch.randint(3, shape.vocab, (batch, context)).tolist()
    taken = []
    try:
        for length in (2, 2 + 4 * _TOKENS):
            config = GenerationConfig(
                max_new_tokens=length, do_sample=False, eos_token_id=-1, pad_token_id=0
            )
            model.generate_batch(inputs=prompts, generation_config=config)
            begin = time.perf_counter()
            model.generate_batch(inputs=prompts, generation_config=config)
            _synchronize()
            taken.append(time.perf_counter() - begin)
    except (RuntimeError, ValueError, ImportError, AttributeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"tokens_per_second": batch * 4 * _TOKENS / (taken[1] - taken[0])}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
