"""Matching of module names with regular expressions, in bounded time.

An instruction runs at most once at each position of a name, and so does each lookaround. With p
instructions and n characters that is at most 2 p n² steps, or 2 p n without lookarounds. All
expressions of a config share `MAX_STEPS`.
"""

from dataclasses import dataclass, field

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import unsupported
from loramux_adapters.pattern_code import (
    BEGIN,
    BORDER,
    END,
    LAST,
    LOOK,
    MANY,
    ONE,
    PLACE,
    SPLIT,
    TEXT,
    WORDS,
    Program,
    RefusedPatternError,
    Steps,
    too_long,
)

_NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Pattern:
    """One regular expression of a config. Names are ASCII, as tensor names are."""

    name: str
    """The config field."""
    text: str
    """The expression, as in the config."""
    _program: Program = field(compare=False, repr=False)
    _steps: Steps = field(compare=False, repr=False)

    @classmethod
    def of(
        cls, name: str, text: str, steps: Steps, inside: str = "{}", *, ending: str = ""
    ) -> "Pattern":
        """Compile the expression `text` of the field `name`.

        Args:
            name: The field.
            text: The expression.
            steps: The step budget that all expressions of the config share.
            inside: The expression that PEFT embeds it in, with `{}` in its place.
            ending: Name of the group that ends `inside`, but for one more part; needed if the end
                of the match matters, see `end`.

        Raises:
            PackageError: The expression is not supported.
        """
        try:
            program = Program(inside.replace("{}", text), steps, ending=ending)
        except RefusedPatternError as error:
            raise unsupported(name, text, str(error)) from None
        return cls(name, text, program, steps)

    def fullmatch(self, module: str) -> bool:
        """Return whether all of `module` matches, as `re.fullmatch` does.

        Raises:
            PackageError: The step budget is used up.
        """
        return self._run(module, self._program.start, 0, {}, is_full=True) != _NOWHERE

    def end(self, module: str) -> int | None:
        """Return where a match at the beginning of `module` ends, as `re.match` does.

        None if nothing matches. If several ends are possible, it is Python's only if `ending` was
        given.

        Raises:
            PackageError: The step budget is used up.
        """
        end = self._run(module, self._program.start, 0, {}, is_full=False)
        return None if end == _NOWHERE else end

    def _run(
        self,
        name: str,
        start: int,
        at: int,
        lookarounds: dict[tuple[int, int], bool],
        *,
        is_full: bool,
    ) -> int:
        """Return the end of the first match of instruction `start` at `at`; or `_NOWHERE`."""
        code, left = self._program.code, self._steps.left
        length = len(name)
        width = length + 1
        waiting = [start * width + at]
        seen = set()
        while waiting:
            left -= 1
            if left < 0:
                raise self._refused()
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            number, at = divmod(key, width)
            kind, argument, then = code[number]
            if kind == TEXT:
                if name.startswith(argument, at):
                    waiting.append(then * width + at + len(argument))
            elif kind == MANY and argument[2] is not None:
                signs, _, first = argument
                while at < length:
                    if name[at] in first:
                        waiting.append(then * width + at)
                    at, key = at + 1, key + 1
                    if name[at - 1] not in signs or key in seen:
                        break
                    seen.add(key)
                    left -= 1
            elif kind == MANY:
                signs, is_lazy, _ = argument
                more = at < length and name[at] in signs
                if more and is_lazy:
                    waiting.append(key + 1)
                waiting.append(then * width + at)
                if more and not is_lazy:
                    waiting.append(key + 1)
            elif kind == SPLIT:
                for each in reversed(argument):
                    waiting.append(each * width + at)
            elif kind == ONE:
                if at < length and name[at] in argument:
                    waiting.append(then * width + at + 1)
            elif kind == PLACE:
                if _is_at(argument, name, at):
                    waiting.append(then * width + at)
            elif kind == LOOK:
                self._steps.left = left
                if self._looks_around(name, argument, at, lookarounds):
                    waiting.append(then * width + at)
                left = self._steps.left
            elif at == length or not is_full:
                self._steps.left = left
                return at
        self._steps.left = left
        return _NOWHERE

    def _looks_around(
        self,
        name: str,
        argument: tuple[int, int, bool],
        at: int,
        lookarounds: dict[tuple[int, int], bool],
    ) -> bool:
        start, back, is_wanted = argument
        if at < back:
            return not is_wanted
        key = (start, at)
        if key not in lookarounds:
            found = self._run(name, start, at - back, lookarounds, is_full=False)
            lookarounds[key] = found != _NOWHERE
        return lookarounds[key] == is_wanted

    def _refused(self) -> PackageError:
        self._steps.left = 0
        return unsupported(self.name, self.text, too_long())


def _is_at(place: int, name: str, at: int) -> bool:
    if place == BEGIN:
        return at == 0
    if place == END:
        return at == len(name)
    if place == LAST:
        return name[at:] in ("", "\n")
    is_border = (name[at - 1 : at] in WORDS) != (name[at : at + 1] in WORDS)
    return is_border == (place == BORDER)
