"""SentencePiece with a separate vocabulary, as a tokenizer of the tokenizers library.

Marian and M2M100 segment a text by a SentencePiece model, and look each piece up by its text in
another file. A run of characters that are in no piece counts as one piece, and is looked up, too.
So in the tokenizer that is built here

- a piece that the other file lacks has an id beyond those of the base (`extra_tokens.py`);
- entries that only the other file has, such as words of the other language, have marks around their
  names. Only unknown runs of a text get such marks; decoding removes them;
- control tokens match no text.

Token ids are SentencePiece's, with these exceptions:

- Some rare sequences of combining marks are normalized differently (`characters.py`).
- Scores are added in double precision. Where sums are equal but for rounding, as in a long run of
  one letter, another of the equally good segmentations may be chosen.
- With BPE, an unknown run is never looked up; and pieces of equal score, or characters that are
  pieces only as part of others, may be merged in another order.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from loramux_server.text.pieces.characters import class_of, replacing
from loramux_server.text.pieces.names import FIRST_EXTRA, MARKS, SPACE, UNKNOWN
from loramux_server.text.pieces.wire import SentencePieces

_BEGIN, _END, _HEAD = MARKS
"""Marks before and after an unknown run, and after the head of a text, such as `>>fra<<`."""
_ANY_MARK = "".join(MARKS)
_PENALTY = 10.0
"""How far below the worst piece an unknown character scores, as in SentencePiece."""


def make_tokenizer(
    pieces: SentencePieces,
    vocabulary: Mapping[str, int],
    unknown: str,
    control: Collection[str],
    heads: Sequence[str] | None = None,
) -> Tokenizer:
    """Return the tokenizer of `pieces`, whose tokens have the ids of `vocabulary`.

    Args:
        pieces: The SentencePiece model.
        vocabulary: Text -> id, of all tokens.
        unknown: The token for what is in neither.
        control: Tokens that no text is encoded to.
        heads: Tokens that may precede a text, such as `>>fra<<`; another of this form is unknown.
            None if such a prefix is plain text.

    Raises:
        ValueError: Ids have a gap or repeat, a token has a Unicode noncharacter, or heads are not
            supported by the pieces.
    """
    by_id = {token: text for text, token in vocabulary.items()}
    for token in range(len(by_id)):
        if token not in by_id:
            raise ValueError(f"the vocabulary of {len(by_id)} tokens has no id {token}")
    if len(by_id) < len(vocabulary):
        raise ValueError("the vocabulary has two tokens with the same id")
    for text in (*vocabulary, *pieces.scores):
        if any(mark in text for mark in (*MARKS, UNKNOWN)):
            raise ValueError(f"the vocabulary has {text!r}, which contains a Unicode noncharacter")
    if heads and pieces.merges:
        raise ValueError(f"a BPE model with tokens such as {heads[0]!r} is not supported")
    normalizer = normalizers.Sequence(_steps(pieces, heads))
    named = {head: normalizer.normalize_str(head) for head in heads or ()}
    for head, name in named.items():
        if re.sub(f"[{_ANY_MARK}]", "", name) != head:
            raise ValueError(f"the normalizer changes the token {head!r}")

    needed = dict.fromkeys(pieces.scores)
    if pieces.merges:
        # BPE also needs single characters that are pieces only as part of others.
        needed |= dict.fromkeys(char for piece in pieces.scores for char in piece)

    def name_of(text: str) -> str:
        if text in needed or text in control:
            return text
        return named.get(text, f"{_BEGIN}{text}{_END}")

    names = [name_of(by_id[token]) for token in range(len(by_id))]
    if lacking := [piece for piece in needed if piece not in vocabulary]:
        names += [FIRST_EXTRA, *lacking]
    if pieces.merges:
        tokenizer = Tokenizer(_merging(pieces, names, unknown))
    else:
        tokenizer = Tokenizer(_scoring(pieces, names, vocabulary[unknown], control))
    tokenizer.normalizer = normalizer
    if heads is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(_HEAD, "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace(mark, "") for mark in MARKS),
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),  # llguidance needs it
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _scoring(
    pieces: SentencePieces, names: Sequence[str], unknown: int, control: Collection[str]
) -> models.Unigram:
    worst = min(pieces.scores.values()) - _PENALTY
    # So low that its characters, one by one, always score better.
    never = {text: worst * (len(text) + 1) for text in control if text not in pieces.scores}
    scores = [(name, pieces.scores.get(name, never.get(name, 0.0))) for name in names]
    return models.Unigram(scores, unk_id=unknown)


def _merging(pieces: SentencePieces, names: Sequence[str], unknown: str) -> models.BPE:
    vocabulary = {name: token for token, name in enumerate(names)}
    ordered = sorted(pieces.scores, key=lambda piece: -pieces.scores[piece])
    merges = [
        (piece[:at], piece[at:])
        for piece in ordered
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True)


def _steps(pieces: SentencePieces, heads: Sequence[str] | None) -> list[normalizers.Normalizer]:
    """Return the normalizers that run before segmentation."""

    def replace(expression: str, content: str) -> normalizers.Replace:
        return normalizers.Replace(Regex(expression), content)

    steps: list[normalizers.Normalizer] = [replace(f"[{_ANY_MARK}]", UNKNOWN)]
    if heads is not None:
        known = "|".join(re.escape(head) for head in heads)
        other = rf"\A(?!{known})" if known else r"\A"
        steps.append(replace(rf"{other}>>[\s\S]*?<<", UNKNOWN + _HEAD))
        steps.append(replace(r"\A>>[\s\S]*?\K<<", f"<<{_HEAD}"))
    steps += replacing(pieces.rules, pieces.charsmap, (_BEGIN, _END))
    if pieces.drops_spaces:
        steps.append(replace(" {2,}", " "))
        steps.append(replace(rf"(?:\A|{_HEAD})\K ", ""))
        steps.append(replace(rf"(?<![ {SPACE}])[ {SPACE}]++\z", ""))
    if pieces.adds_prefix:
        steps.append(normalizers.Prepend(SPACE))
    if pieces.adds_prefix and heads is not None:
        steps.append(replace(rf"\A{SPACE}(?=[^{_HEAD}]*{_HEAD})", ""))
        steps.append(replace(rf"{_HEAD}(?=[\s\S])", _HEAD + SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if not pieces.merges:
        known = class_of({char for piece in pieces.scores for char in piece} | {_HEAD})
        steps.append(replace(f"(?<![^{known}])(?=[^{known}])", _BEGIN))
        steps.append(replace(f"(?<=[^{known}{_BEGIN}])(?=[{known}]|\\z)", _END))
    return steps
