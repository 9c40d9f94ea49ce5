"""The words between calls, and after the last one."""

from loramux_server.tools.syntax import ToolSyntax, marks_of, words_of


def separators_and_closings(syntax: ToolSyntax) -> tuple[list[list[str]], list[list[str]]]:
    """Return the sequences of words that separate calls, and those that close one."""
    separators, closings = [], [words_of(syntax.closing)]
    if syntax.separator is not None:
        words = words_of(syntax.separator)
        if syntax.trigger in words:  # the trigger begins the next call
            closings.append(words[: words.index(syntax.trigger)])
        else:
            separators.append(words)
    if syntax.arguments is not None:  # then models may omit some of the closing
        closings += [words[at:] for words in closings for at in range(1, len(words))]
    if syntax.keys and not syntax.trigger:
        # Models write several calls in various ways; calls are recognized by their names.
        separators += [[], [";"], [","]]
        closings.append(["]"])
    if syntax.code:  # what follows is recognized as a call by itself
        separators += [[], [","]]
    return separators, [words for words in closings if words]


def ends_of(syntax: ToolSyntax) -> list[str]:
    """Return the words of which one begins what follows the arguments of a call."""
    if not syntax.code:
        return marks_of(syntax.closing)
    if not syntax.closing:
        return []
    words = [*words_of(syntax.closing), *words_of(syntax.separator or ())[:1]]
    words += words_of(syntax.opening[:1])[:1]
    return [word for word in dict.fromkeys(words) if word != ","]
