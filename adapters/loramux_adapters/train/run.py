"""A training run: from a base, examples and a method to a package."""

import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from loramux_adapters.base import read_base
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fingerprint import fingerprint
from loramux_adapters.head import Task
from loramux_adapters.labels import Labels, ProblemType, check_labels
from loramux_adapters.manifest import with_step
from loramux_adapters.packing import Output
from loramux_adapters.sources import pack_source
from loramux_adapters.train.curve import Curve, Progress
from loramux_adapters.train.examples import Examples, read_examples
from loramux_adapters.train.head_rows import HeadRows
from loramux_adapters.train.methods import peft_config
from loramux_adapters.train.models import LoadedModel, load_model
from loramux_adapters.train.plan import Plan
from loramux_adapters.train.rows import Collator, Row, rows_of, split, written_rows
from loramux_adapters.train.tasks import task_of
from loramux_adapters.train.text_models import is_encoder, is_encoder_decoder
from loramux_adapters.train.trainer import fit


def train(plan: Plan, output: Output, progress: Progress = lambda *_: None) -> Curve:
    """Train an adapter by `plan` and write its package, with notes, to `output`.

    Only completions, or the targets of a head, count for the loss. Weights are float32. Equal input
    gives equal bytes on the same machine with the same number of threads.

    Raises:
        PackageError: The plan cannot be carried out, or the loss is not finite.
        OSError: A file cannot be read.
    """
    base = read_base(plan.base)
    examples = read_examples(plan.data)
    num_kept = plan.num_kept(len(examples.examples))
    num_learned = len(examples.examples) - num_kept
    steps = plan.epochs * math.ceil(num_learned / plan.batch_size)
    peft_config(plan.shape, steps)  # fail early, before the model is loaded
    with _quiet(), _threads(plan.threads), tempfile.TemporaryDirectory(prefix="loramux-") as name:
        folder = Path(name)
        model_config = AutoConfig.from_pretrained(plan.base, local_files_only=True)
        task = task_of(plan.task, examples, model_config)
        _check_names(examples, task)
        tokenizer = AutoTokenizer.from_pretrained(plan.base, local_files_only=True)
        set_seed(plan.seed)
        problem = examples.form.problem
        loaded = load_model(plan.base, model_config, task, len(_outputs(examples)), problem)
        _check_targets(loaded.model, plan.shape.targets)
        config = peft_config(plan.shape, steps, loaded.traits)
        rows = _rows(examples, tokenizer, loaded, task, config)
        learned, kept = split(rows, num_kept, plan.seed)
        collator = Collator(loaded.padding(tokenizer, task, rows))
        adapted = _adapted(loaded.model, config, plan.shape.method, collator(learned[:1]))
        curve = fit(
            plan, adapted, learned, kept, collator, folder, progress, task=task,
            alone=_takes_one(loaded.model, config, task),
        )  # fmt: skip
        adapted.peft_config["default"].base_model_name_or_path = plan.base_name
        adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        notes = _notes(plan, examples, learned, curve) | {"base": fingerprint(base)}
        pack_source(folder / "adapter", output, notes=notes | _named(examples, task))
    return curve


def _check_names(examples: Examples, task: Task | None) -> None:
    """Check that there are labels to tell apart, with names that a package can hold."""
    if task is None or not task.classifies:
        return
    if examples.form.problem is ProblemType.MULTI_LABEL and not examples.labels:
        raise PackageError(f"{examples.path} has no label in any line", "INVALID_FIELD")
    if examples.form.problem is ProblemType.SINGLE_LABEL and len(examples.labels) < 2:
        raise PackageError(
            f"{examples.path} has only the label {shown(examples.labels[0])}; expected two or more",
            "INVALID_FIELD",
        )
    check_labels({"labels": list(_outputs(examples))}, str(examples.path))


def _rows(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    loaded: LoadedModel,
    task: Task | None,
    config: PeftConfig,
) -> list[Row]:
    """Return the rows of all examples; virtual tokens reduce the maximum length."""
    num_virtual, room = getattr(config, "num_virtual_tokens", 0), loaded.room
    if room - num_virtual < 2:
        raise PackageError(
            f"rank, the number of virtual tokens, is {num_virtual}; the base takes {room} tokens "
            "in total",
            "INVALID_FIELD",
        )
    num_before = num_virtual if isinstance(config, PromptTuningConfig) else 0
    if task is not None:
        makes = HeadRows(
            tokenizer,
            room - num_virtual,
            uses_token_types=loaded.uses_token_types(tokenizer),
            num_before=0 if task is Task.SEQUENCE else num_before,
        )
        return makes.of(examples)
    if not is_encoder_decoder(loaded.model.config):
        return rows_of(examples, tokenizer, room - num_virtual)
    begin = getattr(loaded.model.generation_config, "forced_bos_token_id", None)
    return written_rows(
        examples,
        tokenizer,
        # Soft prompts take room of the encoder's input, KV prefixes of the decoder's.
        room - num_before,
        room - (num_virtual - num_before),
        () if begin is None else (begin,),
    )


def _takes_one(model: PreTrainedModel, config: PeftConfig, task: Task | None) -> bool:
    """Return whether each example has to be a batch of its own.

    With soft prompts transformers gets embeddings, so it cannot detect padding by token, and takes
    the last position for the last token.
    """
    is_prompt = isinstance(config, PromptTuningConfig)
    return is_prompt and task is Task.SEQUENCE and not is_encoder(model.config)


def _adapted(
    model: PreTrainedModel, config: PeftConfig, method: str, batch: dict[str, torch.Tensor]
) -> PeftModel:
    """Return `model` with a new adapter; a soft prompt or prefix is tried with `batch`.

    Raises:
        PackageError: PEFT cannot train such an adapter for it.
    """
    try:
        adapted = get_peft_model(model, config)
        if config.is_prompt_learning:
            with torch.no_grad():
                adapted.eval()(**batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        first_line = str(error).partition("\n")[0]
        raise PackageError(
            f"method {method} cannot be trained: PEFT fails with {type(model).__name__}: "
            f"{type(error).__name__}: {first_line}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        ) from None
    if getattr(config, "modules_to_save", None):  # PEFT appends names of its own
        config.modules_to_save = list(dict.fromkeys(config.modules_to_save))
    return adapted


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of transformers and PEFT, and progress bars of loading."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            # Layers with ranks that AdaLoRA masked.
            warnings.filterwarnings("ignore", message=".* LoRA tensor\\(s\\) have invalid shape")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if was_shown:
            logging.enable_progress_bar()


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    names = [name for name, module in model.named_modules() if not list(module.children())]
    linear = sorted({
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    })  # fmt: skip
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise PackageError(
                f"target {shown(target)} is not a layer of the base; it has {', '.join(linear)}",
                "INVALID_FIELD",
            )


def _named(examples: Examples, task: Task | None) -> dict[str, object]:
    """Return the note for the labels: of a head's outputs, or those that can be generated.

    Examples with answers have none.
    """
    names = _outputs(examples)
    if not names:
        return {}
    if task is None:
        return {"labels": list(names)}
    return {"classification": Labels(names, examples.form.problem).note}


def _outputs(examples: Examples) -> tuple[str, ...]:
    """Return the names of a head's outputs; a regression has `score`."""
    is_number = examples.form.problem is ProblemType.REGRESSION
    return ("score",) if is_number else examples.labels


def _notes(plan: Plan, examples: Examples, learned: list[Row], curve: Curve) -> dict[str, object]:
    """Return the notes on how it was made; without time and paths, for reproducible bytes."""
    step: dict[str, object] = {
        "made_by": "loramux train",
        "data": {"sha256": examples.digest, "examples": len(examples.examples)},
        "arguments": {
            **asdict(plan.shape),
            "targets": list(plan.shape.targets) or "all-linear",
            "epochs": plan.epochs,
            "lr": plan.learning_rate,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "eval_share": plan.eval_share,
        },
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")},
    }
    evaluation: dict[str, object] = {
        "train_examples": len(learned),
        "train_loss": curve.training[-1].loss,
    }
    if curve.evaluation:
        evaluation |= {
            "eval_examples": len(examples.examples) - len(learned),
            "eval_loss_before": curve.evaluation[0].loss,
            "eval_loss": curve.evaluation[-1].loss,
        }
    if curve.accuracy:
        evaluation |= {
            "eval_accuracy_before": curve.accuracy[0],
            "eval_accuracy": curve.accuracy[-1],
        }
    return with_step({"evaluation": evaluation}, step)
