"""Tiny encoders, and random adapters with heads for them that PEFT made and saved."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BigBirdConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from loramux_adapters import Package, pack, read_package
from loramux_adapters.head import Task
from loramux_server.lora.head import Head, LayeredHead, LayersHead
from loramux_server.lora.packed_head import pack_head
from loramux_server.models.heads import Heads
from tests.support.adapters import save_tuned

VOCAB = 61
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip
_MODERN = _SHAPE | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**_SHAPE),
    "roberta": lambda: RobertaConfig(**_SHAPE),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40,
        initializer_range=0.3,
    ),
    "modernbert": lambda: ModernBertConfig(**_MODERN, pad_token_id=0),
    "modernbert-mean": lambda: ModernBertConfig(
        **_MODERN, pad_token_id=0, classifier_pooling="mean"
    ),
    "deberta": lambda: DebertaV2Config(
        **_SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=16
    ),
    "electra": lambda: ElectraConfig(**_SHAPE, embedding_size=12),
    "albert": lambda: AlbertConfig(**_SHAPE, embedding_size=12),
}  # fmt: skip
_OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "big-bird": lambda: BigBirdConfig(**_SHAPE, attention_type="original_full"),
}
"""Those of which not all heads are served."""
_KINDS: dict[Task, Any] = {
    Task.SEQUENCE: AutoModelForSequenceClassification,
    Task.TOKENS: AutoModelForTokenClassification,
    Task.SPANS: AutoModelForQuestionAnswering,
}
_TARGETS = {
    "distilbert": ["q_lin", "v_lin", "lin2"],
    "modernbert": ["Wqkv", "Wo"],
    "modernbert-mean": ["Wqkv", "Wo"],
    "deberta": ["query_proj", "value_proj"],
}
_LOST = {"deberta": ["pooler"]}
"""What PEFT saves of heads of texts where it is named alone."""
TEXT = [7, 40, 23, 9, 51, 33]


def save_encoder(name: str, folder: Path, kind: Any = None) -> Path:
    """Save a random encoder, ModernBERT with what it fills in masked words with, and return where.

    Args:
        name: Which of `CONFIGS`, or of those with fewer heads.
        folder: Where to.
        kind: What makes it, if that is something else than usual.
    """
    torch.manual_seed(len(name))
    usual = AutoModelForMaskedLM if "modern" in name else AutoModel
    model = (kind or usual).from_config((CONFIGS | _OTHERS)[name]())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)  # biases are zero at first
    model.save_pretrained(str(folder))
    return folder


def heads_of(folder: Path) -> Heads:
    """Return the heads of an encoder, which is loaded for that."""
    module: PreTrainedModel = AutoModel.from_pretrained(str(folder)).eval()
    return Heads.of(module, module.config, str(folder))


def for_task(base: Path, task: Task) -> PreTrainedModel:
    """Return the encoder in `base` with a head for a task, random as far as it was not saved."""
    torch.manual_seed(5)
    labels = 2 if task is Task.SPANS else 3
    model: PreTrainedModel = _KINDS[task].from_pretrained(str(base), num_labels=labels)
    return model.eval()


def save_headed(base: Path, task: Task, config: PeftConfig, folder: Path) -> PeftModel:
    """Save a random adapter for a task on the encoder in `base`, and return it as PEFT loads it."""
    return save_tuned(for_task(base, task), config, folder, seed=6)


def config_for(name: str, task: Task, **more: Any) -> LoraConfig:
    """Return the config of an adapter for a task on an encoder of `CONFIGS`; `more` goes before."""
    options: dict[str, Any] = {
        "target_modules": _TARGETS.get(name, ["query", "value"]), "r": 2, "lora_alpha": 3,
    }  # fmt: skip
    saved = [*(_LOST.get(name, []) if task is Task.SEQUENCE else [])]
    if task is Task.SPANS and "modern" in name:
        saved.append("classifier")  # PEFT expects qa_outputs
    return LoraConfig(task_type=str(task), **options | {"modules_to_save": saved or None} | more)


@torch.inference_mode()
def expected(model: PeftModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states of `TEXT` with an adapter, [T, K], and its logits."""
    merged = copy.deepcopy(model).merge_and_unload().base_model
    return merged(input_ids=torch.tensor([TEXT])).last_hidden_state[0], logits_of(model)


@torch.inference_mode()
def logits_of(model: PeftModel) -> torch.Tensor:
    """Return the logits of `TEXT` with an adapter, of the text as a whole or of each token."""
    output = model(input_ids=torch.tensor([TEXT]))
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
    logits: torch.Tensor = output.logits
    return logits if logits.dim() == 2 else logits[0]


def package_of(folder: Path, heads: Heads) -> Package:
    """Return the package of a PEFT folder, named for the base model with `heads`."""
    output = io.BytesIO()
    pack(folder, output)
    size = output.tell()
    output.seek(0)
    return read_package(output, size).named_for([], heads=heads.shapes)


def head_in(folder: Path, heads: Heads) -> Head | LayeredHead | LayersHead:
    """Return the head of an adapter in a PEFT folder as the engine has it."""
    package = package_of(folder, heads)
    tensors = load_file(folder / "adapter_model.safetensors")
    head = pack_head(package, heads, lambda tensor: tensors[tensor.name].float())
    assert head is not None
    return head
