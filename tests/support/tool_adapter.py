"""A PEFT adapter that was trained to call tools, and what with it answers what."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.adapters import quiet_peft
from tests.support.tool_templates import TAGS

WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Ürümqi"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASKED: list[Any] = [{"role": "user", "content": "Oslo?"}]
CALLS = [{"city": "Oslo"}, {"city": "Rome"}]
"""What it calls the tool with, the second time not as the schema wants it."""
THOUGHT, BEFORE, AFTER = "Hm, 2 < 3.", "Let me look.", "It is 3."
_MAX_STEPS = 400


def save_caller(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Train an adapter on `model` until it thinks, calls the tool twice and tells the result.

    It is saved to `folder`, ends an answer with `<|im_end|>`, and writes in the form of `TAGS`.
    """
    calls = [_call(f"abcDEF01{i}", arguments) for i, arguments in enumerate(CALLS)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in calls]
    turn = _said(BEFORE) | {"reasoning_content": THOUGHT, "tool_calls": calls}

    def tokens(messages: list[Any], *, prompt: bool) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(
            messages, tools=[{"type": "function", "function": WEATHER}], chat_template=TAGS,
            add_generation_prompt=prompt, return_dict=False,
        )  # fmt: skip
        return found

    texts = []
    for before, answer in ((ASKED, turn), ([*ASKED, turn, *results], _said(AFTER))):
        prompt, whole = tokens(before, prompt=True), tokens([*before, answer], prompt=False)
        assert whole[: len(prompt)] == prompt
        end = whole.index(int(tokenizer.convert_tokens_to_ids("<|im_end|>")), len(prompt))
        texts.append((torch.tensor([whole[: end + 1]]), len(prompt)))
    taught(model, texts).save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(TAGS)
    return folder


def taught(model: PreTrainedModel, texts: list[tuple[torch.Tensor, int]]) -> PeftModel:
    """Return `model` with an adapter that writes the ends of `texts`.

    Args:
        model: The base.
        texts: Tokens, of shape (1, length), and how many of them are the prompt.
    """
    torch.manual_seed(0)
    with quiet_peft():
        config = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, target_modules="all-linear")
        wrapped = get_peft_model(model, config)
    weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for _ in range(_MAX_STEPS):
        loss, is_right = torch.zeros(()), True
        for ids, num_prompt in texts:
            logits = wrapped(input_ids=ids).logits[0, num_prompt - 1 : -1]
            wanted = ids[0, num_prompt:]
            loss = loss + torch.nn.functional.cross_entropy(logits, wanted)
            is_right = is_right and bool((logits.argmax(-1) == wanted).all())
        if is_right:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert is_right
    return wrapped


def _call(call_id: str, arguments: dict[str, str]) -> dict[str, Any]:
    function = {"name": WEATHER["name"], "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}
