"""Regular expressions for names of modules, tried in bounded time.

An instruction is tried at each place of a name once at most, whatever ways lead there, and so is
each lookaround: of p instructions and n characters it takes 2 p n² steps at most, and 2 p n where
nothing looks around. All expressions of a config share `MAX_STEPS`.
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
    """One regular expression of a config. Names are ASCII, as those of tensors are."""

    name: str
    """The field that it is of."""
    text: str
    """As the config has it."""
    _program: Program = field(compare=False, repr=False)
    _steps: Steps = field(compare=False, repr=False)

    @classmethod
    def of(
        cls, name: str, text: str, steps: Steps, inside: str = "{}", *, ending: str = ""
    ) -> "Pattern":
        """Return the expression `text` of the field `name`.

        Args:
            name: The field.
            text: The expression.
            steps: What is left to all expressions of the config.
            inside: What PEFT puts around it.
            ending: The name of a group that ends what PEFT puts around it, but for one character,
                if it matters where that is; see `end`.

        Raises:
            PackageError: It is not served.
        """
        try:
            program = Program(inside.replace("{}", text), steps, ending=ending)
        except RefusedPatternError as error:
            raise unsupported(name, text, str(error)) from None
        return cls(name, text, program, steps)

    def is_whole(self, module: str) -> bool:
        """Return whether all of `module` matches, as `re.fullmatch` says.

        Raises:
            PackageError: No steps are left.
        """
        return self._run(module, self._program.start, 0, {}, is_whole=True) != _NOWHERE

    def end(self, module: str) -> int | None:
        """Return the end of what matches at the beginning of `module`, as `re.match` says.

        None where nothing does. Of several ends it is that of Python only if `ending` was given.

        Raises:
            PackageError: No steps are left.
        """
        end = self._run(module, self._program.start, 0, {}, is_whole=False)
        return None if end == _NOWHERE else end

    def _run(
        self, name: str, start: int, at: int, looked: dict[tuple[int, int], bool], *, is_whole: bool
    ) -> int:
        """Return where the first match from `start` at the place `at` ends, or `_NOWHERE`."""
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
                if self._looks(name, argument, at, looked):
                    waiting.append(then * width + at)
                left = self._steps.left
            elif at == length or not is_whole:
                self._steps.left = left
                return at
        self._steps.left = left
        return _NOWHERE

    def _looks(
        self,
        name: str,
        argument: tuple[int, int, bool],
        at: int,
        looked: dict[tuple[int, int], bool],
    ) -> bool:
        start, back, is_wanted = argument
        if at < back:
            return not is_wanted
        key = (start, at)
        if key not in looked:
            found = self._run(name, start, at - back, looked, is_whole=False)
            looked[key] = found != _NOWHERE
        return looked[key] == is_wanted

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
