"""Build tokenizers for folders whose tokenizer class in transformers is not a fast one.

Token ids are those of that class, except as `sentence_pieces.py` and `byte_pairs.py` say, and:

- Languages of M2M100 (`__fr__`) are always special tokens, even if the folder names none.
- ByT5: a text that ends with a special `</s>` gets another; and the white space that special tokens
  strip is Unicode's, which excludes U+001C to U+001F.
- Text decoded for Marian or M2M100 keeps its outer white space, except for one leading space;
  invalid bytes of ByT5 become replacement characters.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from loramux_server.images.folder import folder_of
from loramux_server.text.pieces import byte_pairs, sentence_pieces
from loramux_server.text.pieces.folder import (
    CONFIG,
    LEGACY,
    MODEL_CONFIG,
    TEMPLATE,
    Added,
    TokenizerFolder,
    add_to,
)
from loramux_server.text.pieces.wire import read_sentence_pieces
from loramux_server.text.token_bytes import BYTE_CHARACTERS

_LANGUAGES = {
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga "
    "gd gl gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml "
    "mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn "
    "tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}
"""Languages of M2M100, in the order of their tokens."""
_OF_MODELS = {"marian": "MarianTokenizer", "m2m_100": "M2M100Tokenizer"}
"""Model types whose folders need not name their tokenizer class."""


class BuiltTokenizer(NamedTuple):
    """A tokenizer that was built."""

    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]


class _Kind(NamedTuple):
    files: tuple[str, ...]
    """Files it is built from, besides its config."""
    make: Callable[[TokenizerFolder, dict[str, Added]], Tokenizer]
    names: dict[str, str]
    """Default special tokens, by role, where the config says nothing."""


def make_tokenizer_of(path: str) -> BuiltTokenizer | None:
    """Return the tokenizer of the folder or hub id `path`; None if it is left to transformers.

    Raises:
        OSError: A file cannot be read.
        ValueError: It cannot be built from the files, with the reason.
    """
    settings = (CONFIG, MODEL_CONFIG, *LEGACY, TEMPLATE)
    folder = TokenizerFolder(Path(folder_of(path, settings)))
    kind = _KINDS.get(_class_of(folder))
    if kind is None:
        return None
    folder.path = Path(folder_of(path, (*settings, *kind.files)))
    if not all((folder.path / name).is_file() for name in kind.files):
        return None
    named = folder.named(kind.names)
    if lacking := kind.names.keys() - named.keys():
        raise ValueError(f"{CONFIG}: {min(lacking)} is null; expected a token")
    tokenizer = kind.make(folder, named)
    return BuiltTokenizer(
        tokenizer.to_str(),
        folder.chat_template(),
        {name: token.content for name, token in named.items()},
    )


def _class_of(folder: TokenizerFolder) -> str:
    model = folder.json(MODEL_CONFIG)
    for named in (folder.config.get("tokenizer_class"), model.get("tokenizer_class")):
        if named:
            return str(named)
    return _OF_MODELS.get(model.get("model_type", ""), "")


def _marian(folder: TokenizerFolder, named: dict[str, Added]) -> Tokenizer:
    if folder.config.get("separate_vocabs"):
        raise ValueError(
            "separate vocabularies for the source and target languages (separate_vocabs) are not "
            "supported"
        )
    vocabulary = folder.vocabulary("vocab.json")
    heads = [
        text for text in vocabulary if text.startswith(">>") and text.find("<<") == len(text) - 2
    ]
    return _of_pieces(folder, named, "source.spm", vocabulary, heads=heads)


def _m2m100(folder: TokenizerFolder, named: dict[str, Added]) -> Tokenizer:
    codes = folder.config.get("language_codes", "m2m100")
    if codes not in _LANGUAGES:
        raise ValueError(f"language_codes is {codes!r}; expected one of {', '.join(_LANGUAGES)}")
    languages = _LANGUAGES[codes].split()
    source = folder.config.get("src_lang") or "en"
    if source not in languages:
        raise ValueError(f"src_lang is {source!r}; expected one of {' '.join(languages)}")
    vocabulary = folder.vocabulary("vocab.json")
    return _of_pieces(
        folder, named, "sentencepiece.bpe.model", vocabulary,
        languages=[f"__{code}__" for code in languages], before=f"__{source}__",
    )  # fmt: skip


def _of_pieces(
    folder: TokenizerFolder,
    named: dict[str, Added],
    file: str,
    vocabulary: dict[str, int],
    *,
    heads: list[str] | None = None,
    languages: Sequence[str] = (),
    before: str | None = None,
) -> Tokenizer:
    """Return a SentencePiece tokenizer that appends the end token, and prepends `before`."""
    if (folder.config.get("sp_model_kwargs") or {}).get("enable_sampling"):
        raise ValueError("random segmentation (enable_sampling) is not supported")
    unknown, end = named["unk_token"].content, named["eos_token"].content
    for token in (unknown, end):
        if token not in vocabulary:
            raise ValueError(f"vocab.json has no token {token!r}")
    vocabulary |= {text: len(vocabulary) + place for place, text in enumerate(languages)}
    added = folder.added(vocabulary, [*named.values(), *map(Added, languages)])
    vocabulary |= {token.content: number for number, token in added.items()}
    control = {token.content for token in added.values()}
    if heads is not None:
        heads = [head for head in heads if head not in control]
    pieces = read_sentence_pieces((folder.path / file).read_bytes(), file)
    tokenizer = sentence_pieces.make_tokenizer(pieces, vocabulary, unknown, control, heads)
    add_to(tokenizer, added)
    if before is None:
        _put_around(tokenizer, "$A {0}", "$A $B {0}", [end])
    else:
        _put_around(tokenizer, "{1} $A {0}", "{1} $A $B {0}", [end, before])
    return tokenizer


def _byt5(folder: TokenizerFolder, named: dict[str, Added]) -> Tokenizer:
    first = [named[name].content for name in ("pad_token", "eos_token", "unk_token")]
    vocabulary = {text: token for token, text in enumerate((*first, *BYTE_CHARACTERS))}
    tokens = [
        # Configured as plain strings, they strip the white space around them.
        token
        if isinstance(folder.config.get(name), dict)
        else replace(token, lstrip=True, rstrip=True)
        for name, token in named.items()
    ]
    extra = [f"<extra_id_{number}>" for number in range(folder.config.get("extra_ids", 125))]
    added = folder.added(vocabulary, tokens, instead=extra)
    vocabulary |= {token.content: number for number, token in added.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=first[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    add_to(tokenizer, added)
    _put_around(tokenizer, "$A {1}", "$A {1} $B {1}", first)
    return tokenizer


def _byte_pairs(folder: TokenizerFolder, named: dict[str, Added]) -> Tokenizer:
    if folder.config.get("normalization"):
        raise ValueError("normalization of social media posts (normalization) is not supported")
    first = [named[f"{name}_token"].content for name in ("bos", "pad", "eos", "unk")]
    vocabulary = byte_pairs.read_vocabulary((folder.path / "vocab.txt").read_text(), first)
    added = folder.added(vocabulary, named.values())
    vocabulary |= {token.content: number for number, token in added.items()}
    tokenizer = byte_pairs.make_tokenizer(
        (folder.path / "bpe.codes").read_text(), vocabulary, first[3],
        {token.content for token in added.values()},
    )  # fmt: skip
    add_to(tokenizer, added)
    around = [named[name].content for name in ("cls_token", "sep_token")]
    _put_around(tokenizer, "{0} $A {1}", "{0} $A {1} {1} $B {1}", around)
    return tokenizer


def _put_around(tokenizer: Tokenizer, single: str, pair: str, tokens: list[str]) -> None:
    """Make `tokenizer` add `tokens` around a text, and around a pair, as the templates say."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(*tokens),
        pair=pair.format(*tokens),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


_OF_PIECES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
_OF_WORDS = {**_OF_PIECES, "bos_token": "<s>", "sep_token": "</s>", "cls_token": "<s>"}
_WORDS = _Kind(("vocab.txt", "bpe.codes"), _byte_pairs, {**_OF_WORDS, "mask_token": "<mask>"})
_KINDS = {
    "MarianTokenizer": _Kind(("source.spm", "vocab.json"), _marian, _OF_PIECES),
    "M2M100Tokenizer": _Kind(
        ("sentencepiece.bpe.model", "vocab.json"), _m2m100,
        {**_OF_PIECES, "bos_token": "<s>", "sep_token": "</s>"},
    ),
    "ByT5Tokenizer": _Kind((), _byt5, _OF_PIECES),
    "PhobertTokenizer": _WORDS,
    "BertweetTokenizer": _WORDS,
}  # fmt: skip
