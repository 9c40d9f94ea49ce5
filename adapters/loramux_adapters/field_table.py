"""What becomes of every method and every field of PEFT, as Markdown.

`python -m loramux_adapters.field_table` prints it; `docs/peft-fields.md` is that.
"""

from collections.abc import Iterator, Mapping

from loramux_adapters.fields import Fields
from loramux_adapters.kinds import FOLDED, KINDS, REFUSED
from loramux_adapters.pattern_code import MAX_LENGTH, MAX_LEVELS, MAX_PARTS, MAX_STEPS
from loramux_adapters.weights.sources import FIELDS_OF_FOLDED

_HEAD = """\
# What is served of PEFT

Every method of PEFT 0.21, and every field of its `adapter_config.json`. *Honoured* fields decide
what is computed; *recorded* ones do not change the result of what was saved, and are kept; others
are refused with this reason, unless they are switched off. `merge_weights` is one of PEFT 0.1 and
0.2. A test holds the table against PEFT's config classes, so that a field of a later version cannot
slip past. `BOTTLENECK` is what a package calls the bottleneck adapters of the `adapters` library
(Houlsby, Pfeiffer, parallel); `task_type` and `head_activation` are of a prediction head beside
them.
"""

_NAMES = f"""\
## Names of modules

In `target_modules`, `exclude_modules` and `feedforward_modules` a list holds names, whole or the
last parts of them, and a string other than `all-linear` is a regular expression for the whole
name, as Unsloth, ms-swift and LLaMA-Factory write them. Keys of `rank_pattern` and `alpha_pattern`
are expressions for the last parts, of which the first that matches counts, and so are names in
`layers_pattern`. A key, or a name there, with no sign but dots is a name, and its dots are dots.
All are asked with the names that modules have in the adapter's own file.

Expressions are those of Python's `re`, lookarounds and `(?i)`, `(?s)` and `(?x)` included, but are
not tried by it: it can take time that doubles with each character. Here each part of one is tried
at each place of a name once at most. Refused are groups that are read again (`\\1`), `(?(1)…)`,
`(?>…)`, `a++` and the other flags; beside `(?i)`, letters beyond ASCII; more than {MAX_LENGTH:,}
characters, {MAX_LEVELS} parentheses inside each other, or {MAX_PARTS:,} parts with all that is
repeated by number; and what takes more than {MAX_STEPS:,} steps for the modules of an adapter,
about a second. The names of 2,000 modules take 300,000 with Unsloth's expression. In
`layers_pattern` a choice needs parentheses around it, and no repeated part may be empty. Lists
hold no expressions, and neither do `modules_to_save` and `target_parameters`.
"""

_TASKS = """\
## Tasks

What the adapter was trained for, `task_type` of PEFT, decides which calls it answers. Layers may
have the names that transformers gives them for that task: `transformer.layers` of
`LlamaForQuestionAnswering` are `model.layers` of the base, and so are `layers` of `AutoModel`.

| `task_type` | |
| --- | --- |
| `CAUSAL_LM`, or none | continues text |
| `SEQ_CLS` | labels texts by a head, `score` or `classifier` |
| `TOKEN_CLS` | labels each token by a head, `score` or `classifier` |
| `QUESTION_ANS` | finds answers in texts by a head, `qa_outputs`, or `classifier` (ModernBERT) |
| `FEATURE_EXTRACTION` | embeds texts |

What continues text embeds as well, unless it waits for invocation tokens, or brings virtual tokens
to a decoder; those that were trained to embed (FEATURE_EXTRACTION) do. FEATURE_EXTRACTION continues
no text, since no layer of logits was there when it was trained. A head is trained whole, beside
LoHa, LoKr and VeRA, too: of a decoder one linear layer, of an encoder what transformers' class for
the task has behind its base model, such as `classifier.dense` and `classifier.out_proj` of RoBERTa
or `pre_classifier` and `classifier` of DistilBERT. LoRA, DoRA, biases and `modules_to_save` of a
pooler, and of other layers there that were saved with the base (`head` of ModernBERT), are
honoured. What was trained to embed, with `all-linear` say, may change a pooler, of which vectors
are not made, as with PEFT. Layers that were not saved with the base began as random numbers, and
PEFT saves them where `modules_to_save` has them: DeBERTa's `pooler` has to be named there. An
adapter without them is refused, which names them, and so are other heads, and IA³ behind the
layers.

Heads, and `modules_to_save` but embeddings, are honoured beside virtual tokens, too. As with PEFT,
embeddings before a text are a part of it to what pools, vectors included: of BERT the first of them
is what its pooler takes, and of a decoder, where it is the same for every text, it is refused
(`pooling` first). Labels and answers are told of the text's own tokens. Keys and values
before a text are served where PEFT has its head read what is behind them: BERT, RoBERTa, ELECTRA
and decoders; not DistilBERT, DeBERTa or ModernBERT, which take none, nor BigBird, with whose head
PEFT fails.

Bottlenecks of the `adapters` library stand in Llama, Mistral, Qwen, GPT-2, BERT, RoBERTa, XLM-R,
ELECTRA, DeBERTa, DistilBERT, ALBERT, T5, BART and mBART, and whatever has layers of the same parts.
A prediction head that was saved beside them is honoured on encoders: of transformers' class for a
task, and of kind `classification`, `multilabel_classification`, `tagging` or `question_answering`
of the library's own classes, but for one that reads the pooler (`use_pooler`). Heads beside LoRA of
the library are refused.
"""


def field_table() -> str:
    """Return the document."""
    return "\n".join(_lines())


def all_fields() -> Mapping[str, Fields]:
    """Return the fields of each method that is served or folded, by the value of `peft_type`."""
    return {name: kind.fields for name, kind in KINDS.items()} | dict(FIELDS_OF_FOLDED)


def _lines() -> Iterator[str]:
    yield from (_HEAD, _NAMES, _TASKS, "## Methods", "", "| `peft_type` | |", "| --- | --- |")
    rows = dict.fromkeys(KINDS, "served")
    rows |= dict.fromkeys(FOLDED, "made a LoRA by `loramux pack`")
    rows |= {name: f"refused: {why}" for name, why in REFUSED.items()}
    yield from (f"| `{name}` | {rows[name]} |" for name in sorted(rows, key=_order))
    for name, fields in sorted(all_fields().items(), key=lambda item: _order(item[0])):
        yield from ("", f"## `{name}`", "", "| field | |", "| --- | --- |")
        places = dict.fromkeys(fields.honoured, "honoured")
        places |= dict.fromkeys(fields.recorded, "recorded")
        places |= {field: _refused(field, why, fields) for field, why in fields.refused.items()}
        yield from (f"| `{field}` | {places[field]} |" for field in sorted(places))
    yield ""


def _refused(field: str, why: str, fields: Fields) -> str:
    harmless = ", ".join(f"`{value}`" for value in fields.harmless.get(field, ()))
    return f"refused{f', except {harmless}' if harmless else ''}: {why}"


def _order(name: str) -> tuple[int, str]:
    return (0 if name in KINDS else 1 if name in FOLDED else 2, name)


if __name__ == "__main__":
    print(field_table(), end="")
