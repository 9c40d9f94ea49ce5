"""A PEFT adapter that was trained to write messages on channels, and what it answers to what."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.channels import CHANNELS
from tests.support.tool_adapter import AFTER, ASKED, BEFORE, THOUGHT, WEATHER, taught

ANSWER = "Warm.\n\nBut < 3?"
TOLD = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
ANSWERED = f"{TOLD}<|channel|>final<|message|>{ANSWER}<|return|>"
CALLED = (
    f"{TOLD}<|channel|>commentary<|message|>{BEFORE}<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)
FINAL = f"<|channel|>final<|message|>{AFTER}<|return|>"


def save_writer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Train an adapter on `model` to think and answer, call a tool if it has one, or tell a result.

    It is saved to `folder`.
    """
    function = {"name": WEATHER["name"], "arguments": {"city": "Oslo"}}
    call = {"role": "assistant", "content": BEFORE, "thinking": THOUGHT,
            "tool_calls": [{"type": "function", "function": function}]}  # fmt: skip
    texts = []
    for messages, has_tools, answer in (
        (ASKED, False, ANSWERED),
        (ASKED, True, CALLED),
        ([*ASKED, call, {"role": "tool", "content": "3"}], True, FINAL),
    ):
        tools: Any = [{"type": "function", "function": WEATHER}] if has_tools else None
        prompt = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=CHANNELS, add_generation_prompt=True,
            return_dict=False,
        )  # fmt: skip
        tokens = [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids]
        texts.append((torch.tensor([tokens]), len(prompt)))
    taught(model, texts).save_pretrained(str(folder))
    return folder
