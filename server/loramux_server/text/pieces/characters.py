"""SentencePiece's character normalization, in normalizers of the tokenizers library.

A SentencePiece model has a table of replacements, mostly NFKC and some white space, and applies the
longest entry at each position. The tokenizers library reads the table, too, but looks up grapheme
clusters, and takes the shortest entry for one, which loses accents. So where a table is derived
from NFKC, NFKC runs first, and no entries for several characters are left to apply.

The result is the same, with these exceptions:

- A combining mark between a letter and another mark that composes with the letter: of `a` + cedilla
  + acute, the acute composes with the `a`. After a character that is replaced by several, such as a
  ligature, a mark attaches to the last of them.
- Characters of later Unicode versions than the table's are replaced as NFKC says.
- With a table not derived from NFKC, a mark after a replaced character may be lost, and entries for
  several characters, of six bytes or more, are replaced character by character.
"""

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from functools import cache

from tokenizers import Regex, normalizers

from loramux_server.text.pieces.names import SPACE

_NFKC = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""Names of rules that are derived from NFKC."""
_WAVE = "\uff5e"
"""A character that NFKC replaces, and some of the tables do not."""


def replacing(name: str, charsmap: bytes, marks: tuple[str, str]) -> list[normalizers.Normalizer]:
    """Return normalizers that replace characters as the table `charsmap` called `name` says.

    Args:
        name: SentencePiece's name of the rules.
        charsmap: The table, in SentencePiece's own format; empty for none.
        marks: Two characters that occur in no text.
    """
    if not charsmap:
        return []
    listed = normalizers.Precompiled(charsmap)
    if name not in _NFKC:
        return [listed]
    kept, parting = marks
    found: list[normalizers.Normalizer] = []
    if listed.normalize_str(SPACE) == " ":
        found.append(normalizers.Replace(SPACE, " "))
    if keeps_wave := listed.normalize_str(_WAVE) == _WAVE:
        found.append(normalizers.Replace(_WAVE, kept))
    # NFKC would also reorder combining marks, unless they are kept apart.
    found.append(normalizers.Replace(Regex(_out_of_order()), parting))
    found += [normalizers.NFKC(), normalizers.Replace(parting, ""), listed]
    if keeps_wave:
        found.append(normalizers.Replace(kept, _WAVE))
    return found


def class_of(characters: Collection[str]) -> str:
    """Return the inside of a bracket expression (regex) that matches one of `characters`."""
    runs: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in runs)


@cache
def _out_of_order() -> str:
    """Return a regex for positions between two combining marks that are not in canonical order."""
    by_order = defaultdict(set)
    for point in range(sys.maxunicode + 1):
        if order := unicodedata.combining(chr(point)):
            by_order[order].add(chr(point))
    seen, pairs = set(by_order[min(by_order)]), []
    for order in sorted(by_order)[1:]:
        pairs.append(f"(?<=[{class_of(by_order[order])}])(?=[{class_of(seen)}])")
        seen |= by_order[order]
    return f"(?=[{class_of(seen)}])(?:{'|'.join(pairs)})"
