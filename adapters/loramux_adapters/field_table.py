"""How every PEFT method and config field is treated, as Markdown.

`docs/peft-fields.md` is the output of `python -m loramux_adapters.field_table`.
"""

from collections.abc import Iterator, Mapping

from loramux_adapters.bottleneck import PEFT_TYPE
from loramux_adapters.fields import Fields
from loramux_adapters.kinds import FOLDED, FOLDED_FIELDS, FULL_RANK, KINDS, REFUSED
from loramux_adapters.pattern_code import MAX_LENGTH, MAX_LEVELS, MAX_PARTS, MAX_STEPS
from loramux_adapters.peft_config import MAX_RANK
from loramux_adapters.weights.sources import FIELDS_OF_FOLDED

_HEAD = """\
# PEFT methods and fields

This page covers every method of PEFT 0.21, and every field of its `adapter_config.json`.

- *Honoured* fields decide what is computed.
- *Recorded* fields are kept; they do not change the result of what was saved.
- All others are refused with the reason given here, unless they are switched off.

A test compares the tables with PEFT's config classes, so no field of a later version goes
unnoticed. `merge_weights` is from PEFT 0.1 and 0.2. `BOTTLENECK` is a package's name for the
bottleneck adapters of the `adapters` library (Houlsby, Pfeiffer, parallel); its `task_type` and
`head_activation` describe a prediction head saved with them.
"""

_NAMES = f"""\
## Names of modules

- `target_modules`, `exclude_modules`, `feedforward_modules`: a list holds module names, whole or
  their last parts. A string other than `all-linear` is a regular expression for the whole name, as
  Unsloth, ms-swift and LLaMA-Factory write it.
- `rank_pattern`, `alpha_pattern`: keys are expressions for the last parts of a name; the first
  match counts.
- `layers_pattern`: expressions for the last parts of a name.
- Other lists, `modules_to_save` and `target_parameters` hold no expressions.

A pattern key, or a name in `layers_pattern`, whose only special characters are dots is a plain
name. All are matched against the module names in the adapter's own file.

Expressions use the syntax of Python's `re`, including lookarounds and `(?i)`, `(?s)` and `(?x)`.
They do not run on `re`, which can take exponential time: here, each part of an expression is tried
at most once at each position of a name. Refused are:

- backreferences (`\\1`), `(?(1)…)`, `(?>…)`, `a++` and other flags
- letters beyond ASCII together with `(?i)`
- more than {MAX_LENGTH:,} characters, {MAX_LEVELS} nested parentheses, or {MAX_PARTS:,} parts with
  counted repetitions expanded
- more than {MAX_STEPS:,} steps for the modules of an adapter, about a second (Unsloth's expression
  takes 300,000 for 2,000 modules)
- in `layers_pattern`, alternatives without parentheses around them, and repeated parts that may be
  empty
"""

_TASKS = """\
## Tasks

PEFT's `task_type`, what the adapter was trained for, decides which calls it answers. Layers may
have the names of transformers' class for that task: `transformer.layers` of
`LlamaForQuestionAnswering` and `layers` of `AutoModel` are `model.layers` of the base.

| `task_type` | |
| --- | --- |
| `CAUSAL_LM`, or none | generates text |
| `SEQ_CLS` | classifies texts with a head, `score` or `classifier` |
| `TOKEN_CLS` | classifies each token with a head, `score` or `classifier` |
| `QUESTION_ANS` | finds answers in texts with a head, `qa_outputs`, or `classifier` (ModernBERT) |
| `FEATURE_EXTRACTION` | embeds texts |

**Embedding.** Adapters that generate text embed as well, except aLoRA, and except virtual tokens on
a decoder that were not trained to embed (FEATURE_EXTRACTION). FEATURE_EXTRACTION generates no text,
since it was trained without an output layer. Such an adapter may change a pooler (`all-linear`
does), but as with PEFT, vectors are not made from it.

**Heads** are trained in full, also with methods that are folded: on a decoder one linear layer, on
an encoder what transformers' class for the task has after its base model, `classifier.dense` and
`classifier.out_proj` of RoBERTa or `pre_classifier` and `classifier` of DistilBERT. LoRA, DoRA,
biases and `modules_to_save` of a pooler, and of other layers there that were saved with the base
(`head` of ModernBERT), are honoured. Layers that were not saved with the base started from random
numbers; PEFT saves them if `modules_to_save` names them, as it must name DeBERTa's `pooler`.
Without them the adapter is refused, and the error names them. Other heads are refused, and so is
IA³ after the base's layers.

**Virtual tokens** work with heads, and with `modules_to_save` except embeddings. As with PEFT:

- Virtual embeddings are pooled like the text, also for vectors. BERT's pooler reads the first of
  them. On a decoder the first is the same for every text, so `pooling` first is refused.
- Labels and answers refer to the text's own tokens.
- Prefix tuning with a head is served where PEFT's head reads what follows the prefix: BERT,
  RoBERTa, ELECTRA and decoders. DistilBERT, DeBERTa and ModernBERT take no prefix, and PEFT's head
  of BigBird fails.

**Bottlenecks** of the `adapters` library work on Llama, Mistral, Qwen, GPT-2, BERT, RoBERTa, XLM-R,
ELECTRA, DeBERTa, DistilBERT, ALBERT, T5, BART and mBART, and any model whose layers have the same
parts. On encoders, a prediction head saved with them is honoured if it is of transformers' class
for a task, or of kind `classification`, `multilabel_classification`, `tagging` or
`question_answering` of the library's own classes; one that reads the pooler (`use_pooler`) is
refused. Heads with LoRA of the library are refused.
"""


_METHODS = """\
## Methods

{served} of PEFT's {all} methods are served; the others are refused by name, with the way out if
there is one. Bottlenecks are those of the `adapters` library.

- *Served*: as PEFT saved it.
- *Made a LoRA*: `loramux pack`, and `serve --adapters` for a PEFT folder, write a LoRA that adds
  exactly what the method adds. It is computed in float64, and stored as float32; LoHa, LoKr, VeRA,
  PVeRA, MiSS and AdaLoRA in the dtype that PEFT saved. Its rank is that of the method: `r` mostly,
  `r²` for LoHa, the product of the ranks of both sides for LoKr, `gralora_k · r + hybrid_r` for
  GraLoRA, 1 for BEFT. Above rank {max_rank}, it is the nearest LoRA of rank {max_rank}; the loss of
  each layer is reported, and refused above `--max-error`, 1%. LoRA with `use_bdlora` is made plain,
  too, and with `--base` LoRA that starts as PiSSA or OLoRA, of rank `2 r`.
- *Made whole layers*: what the method adds has no low rank. The package has the weights of the
  changed layers with the change in them, in the dtype of the base, as `merge_and_unload` would
  write them; its method is LN_TUNING, which to PEFT is any modules trained whole. They run in the
  same batches and equal PEFT, too, but take the memory of those layers: 1.3 GB for `q_proj` and
  `v_proj` of Llama-3.1-8B. Such adapters cannot be scaled or mixed. To serve many of them, make
  LoRAs that are near: PEFT's `save_as_lora` does it for C3A, FourierFT, HiRA, RandLoRA and SHiRA.

Some need to know the base: `--base FOLDER` of `pack`. `serve --adapters` knows the one it serves;
for its weights, `--model` has to be a folder.
"""
_SIZES = "`--base`, for the sizes of layers"
_WEIGHTS = "`--base`, for its weights"
_NEEDS = {
    "BEFT": _SIZES,
    "DEFT": _WEIGHTS,
    "HRA": _WEIGHTS,
    "MISS": _SIZES,
    "PVERA": _SIZES,
    "VERA": _SIZES,
}


def field_table() -> str:
    """Return the document."""
    return "\n".join(_lines())


def all_fields() -> Mapping[str, Fields]:
    """Return the fields of each method that is served or folded, by `peft_type`."""
    return {name: kind.fields for name, kind in KINDS.items()} | dict(FIELDS_OF_FOLDED)


def _lines() -> Iterator[str]:
    served = len((KINDS.keys() | FOLDED) - {PEFT_TYPE})
    methods = _METHODS.format(served=served, all=served + len(REFUSED), max_rank=MAX_RANK)
    yield from (_HEAD, _NAMES, _TASKS, methods, "| `peft_type` | |", "| --- | --- |")
    rows = dict.fromkeys(KINDS, "served")
    rows |= {name: "made a LoRA" + _needed(_NEEDS.get(name)) for name in FOLDED - FULL_RANK}
    rows |= {name: "made whole layers" + _needed(_WEIGHTS) for name in FULL_RANK}
    rows["MISS"] += "; its form `bat` made whole layers"
    rows |= {name: f"refused: {why}" for name, why in REFUSED.items()}
    yield from (f"| `{name}` | {rows[name]} |" for name in sorted(rows, key=_order))
    for name, fields in sorted(all_fields().items(), key=lambda item: _order(item[0])):
        yield from ("", f"## `{name}`", "", "| field | |", "| --- | --- |")
        places = dict.fromkeys(fields.honoured, "honoured")
        places |= dict.fromkeys(fields.recorded, "recorded")
        places |= {field: _refused(field, why, fields) for field, why in fields.refused.items()}
        places |= dict.fromkeys(FOLDED_FIELDS.get(name, ()), "honoured by `loramux pack`")
        yield from (f"| `{field}` | {places[field]} |" for field in sorted(places))
    yield ""


def _needed(what: str | None) -> str:
    return f"; needs {what}" if what else ""


def _refused(field: str, why: str, fields: Fields) -> str:
    harmless = ", ".join(f"`{value}`" for value in fields.harmless.get(field, ()))
    return f"refused{f', except {harmless}' if harmless else ''}: {why}"


def _order(name: str) -> tuple[int, str]:
    return (0 if name in KINDS else 1 if name in FOLDED else 2, name)


if __name__ == "__main__":
    print(field_table(), end="")
