"""Random adapters with heads, made and saved by PEFT, and what PEFT computes with them."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, PeftModelForQuestionAnswering, get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from loramux_adapters.head import Task
from tests.support.adapters import quiet_peft

_MODELS = {
    Task.SEQUENCE: AutoModelForSequenceClassification,
    Task.TOKENS: AutoModelForTokenClassification,
    Task.SPANS: AutoModelForQuestionAnswering,
}


def tasks_of(base: PreTrainedModel) -> list[Task]:
    """Return the tasks for which transformers has a model of that architecture."""
    return [task for task in Task if type(base.config) in _MODELS[task]._model_mapping]


def classifier(base: PreTrainedModel, task: Task, num_labels: int) -> PreTrainedModel:
    """Return a model for `task` whose layers are those of the causal `base`.

    Of `SPANS` there are two labels, begin and end, whatever is asked for.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = num_labels
    # transformers takes the last token that is no padding, and prompts of tests have any token.
    config.pad_token_id = -1
    model: PreTrainedModel = _MODELS[task].from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(base.base_model.state_dict())
    return model.eval()


def save_classifier(
    model: PreTrainedModel, config: PeftConfig, folder: Path, *, seed: int
) -> PeftModel:
    """Save a random adapter for the classifier `model`, and return it as PEFT loads it."""
    torch.manual_seed(seed)
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.5 / weight.shape[-1] ** 0.5)
        wrapped.save_pretrained(str(folder))
        return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


@torch.inference_mode()
def expected_logits(model: PeftModel, prompt: Sequence[int]) -> torch.Tensor:
    """Return the logits of the labels: [labels] of a text, [tokens, labels] of its tokens."""
    output = model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
    if isinstance(model, PeftModelForQuestionAnswering):
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
    logits: torch.Tensor = output.logits[0]
    return logits
