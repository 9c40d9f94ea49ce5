"""Random adapters with heads, made and saved by PEFT, and what PEFT computes with them."""

import copy
from collections.abc import Sequence

import torch
from peft import PeftModel, PeftModelForQuestionAnswering
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from loramux_adapters.head import Task

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


@torch.inference_mode()
def expected_logits(model: PeftModel, prompt: Sequence[int]) -> torch.Tensor:
    """Return the logits of the labels: [labels] of a text, [tokens, labels] of its tokens."""
    output = model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
    if isinstance(model, PeftModelForQuestionAnswering):
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
    logits: torch.Tensor = output.logits[0]
    return logits
