"""Files of sentence-transformers beside an adapter: each module is honoured or refused by name.

Semantics follow `SentenceTransformer`, `Pooling` and `Normalize` of sentence-transformers 5.
"""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.embedding import Pooling
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_bounded, read_object
from loramux_adapters.strict_json import parse_object

MODULES_FILE = "modules.json"
POOLING_FILE = "1_Pooling/config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
TEXTS_FILE = "sentence_bert_config.json"
FILES = (MODULES_FILE, POOLING_FILE, PROMPTS_FILE, TEXTS_FILE)
"""All files that are read."""
MAX_BYTES = 64 << 10

_MODES = {
    "cls": Pooling.FIRST,
    "mean": Pooling.MEAN,
    "lasttoken": Pooling.LAST,
}
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Field of version 4 -> the pooling mode that it switches on."""


def embedding_from_folder(source: Path, pooling: Pooling | None = None) -> dict[str, object]:
    """Return the note `embedding` from the files in the folder `source`; empty if there are none.

    An explicit `pooling` overrides theirs, which is then not read.

    Raises:
        PackageError: A file is malformed, or asks for something unsupported.
    """
    found: dict[str, object] = {}
    if (source / MODULES_FILE).exists():
        kinds = _modules(source)
        found["normalize"] = "Normalize" in kinds
        if "Pooling" not in kinds and not pooling:
            raise _refused(f"{MODULES_FILE} has no Pooling module, which embeddings need")
    if pooling:
        found["pooling"] = str(pooling)
    elif (source / POOLING_FILE).exists():
        found["pooling"] = str(_pooling(read_object(source, POOLING_FILE, MAX_BYTES)))
    elif found:
        raise _refused(f"{MODULES_FILE} has a Pooling module, but {POOLING_FILE} is missing")
    if not found:
        return {}
    if (source / PROMPTS_FILE).exists():
        name = read_object(source, PROMPTS_FILE, MAX_BYTES).get("default_prompt_name")
        if name is not None:
            raise _refused(
                f"{PROMPTS_FILE}: default_prompt_name is {shown(name)}, which is not supported; "
                "set it to null, and have callers prepend the prompt to their texts"
            )
    # Its max_seq_length truncates texts; here, texts that are too long are refused.
    texts = read_object(source, TEXTS_FILE, MAX_BYTES) if (source / TEXTS_FILE).exists() else {}
    if texts.get("do_lower_case"):
        raise _refused(f"{TEXTS_FILE}: do_lower_case is true, which is not supported")
    return found


def _modules(source: Path) -> list[str]:
    """Return the kinds of modules that a text passes through, in order."""
    raw = read_bounded(source, MODULES_FILE, MAX_BYTES)
    try:
        listed = parse_object(b'{"modules":' + raw + b"}", MODULES_FILE)["modules"]
    except ValueError as error:
        raise PackageError(str(error), "INVALID_ADAPTER_CONFIG") from None
    kinds: list[str] = []
    for entry in listed if isinstance(listed, list) else [None]:
        match entry:
            case {"type": str(name), "path": str(path)}:
                kind = name.rpartition(".")[2]
            case _:
                raise PackageError(
                    f"{MODULES_FILE} is {shown(listed)}; expected a list of modules with type and "
                    "path",
                    "INVALID_ADAPTER_CONFIG",
                )
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise _refused(
                f"{MODULES_FILE}: module {shown(name)} is not supported; expected Transformer, "
                "Pooling or Normalize"
            )
        if kind == "Pooling" and path != POOLING_FILE.partition("/")[0]:
            raise _refused(
                f"{MODULES_FILE}: the path of Pooling is {shown(path)}; expected "
                f"{shown(POOLING_FILE.partition('/')[0])}"
            )
        kinds.append(kind)
    if kinds[:2] != ["Transformer", "Pooling"] and "Pooling" in kinds:
        raise _refused(
            f"{MODULES_FILE}: Pooling must directly follow Transformer, got {shown(kinds)}"
        )
    return kinds


def _pooling(config: Mapping[str, object]) -> Pooling:
    """Return the pooling that the config of a Pooling module selects."""
    if config.get("include_prompt") is False:
        raise _refused(
            f"{POOLING_FILE}: include_prompt is false, which is not supported: all tokens of a "
            "text are pooled"
        )
    mode = config.get("pooling_mode")
    modes = list(mode) if isinstance(mode, list) else [mode] if mode is not None else []
    modes += [name for field, name in _SWITCHES.items() if config.get(field)]
    # The default of version 4 is the mean.
    modes = modes or ["mean"]
    if len(modes) > 1 or not isinstance(modes[0], str) or modes[0] not in _MODES:
        raise _refused(
            f"{POOLING_FILE}: pooling mode {shown(' and '.join(map(str, modes)))} is not "
            f"supported; expected one of {', '.join(_MODES)}"
        )
    return _MODES[modes[0]]


def _refused(message: str) -> PackageError:
    return PackageError(message, "UNSUPPORTED_ADAPTER_FEATURE")
