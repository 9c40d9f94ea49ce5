"""The mistakes that are made, and that tests of ours notice one."""

import subprocess
import sys

import pytest

from tests.mutation.modules import GROUPS, files_in, who_tests
from tests.mutation.mutants import mutants
from tests.mutation.trial import ROOT


@pytest.mark.parametrize(("source", "changes"), [
    ("a < b", ["a <= b"]),
    ("a == b != c", ["a != b != c", "a == b == c"]),
    ("a + 2", ["a - 2", "a + 3"]),
    ("a and not b", ["a or not b", "a and b"]),
    ("if a:\n    f()", ["if not a:\n    f()", "if a:\n    pass"]),
    ("if not a:\n    b = True", ["if a:\n    b = True", "if not a:\n    b = False"]),
    ("def f():\n    return a", ["def f():\n    return None"]),
    ("raise ValueError('two words')", ["pass"]),
    ("x = 'word'", ["x = 'wordx'"]),
    ("while a:\n    break", ["while not a:\n    break", "while a:\n    continue"]),
    ("[a for a in b if a]", ["[a for a in b if not a]"]),
    ("def f(a: int=1) -> 'x':\n    assert a > 1", ["def f(a: int=2) -> 'x':\n    assert a > 1"]),
    ("'word'\n@property\ndef f():\n    pass", []),
    ("import a", []),
])  # fmt: skip
def test_a_mutant_has_one_mistake(source: str, changes: list[str]) -> None:
    assert sorted(mutant.source for mutant in mutants(source)) == sorted(changes)


def test_what_is_mutated_and_the_who_tests_it_are_there() -> None:
    for group, (patterns, tests) in GROUPS.items():
        paths = files_in(group)
        assert len(paths) >= len(patterns)
        assert all((ROOT / test).is_file() for test in tests)
        for path in paths:
            found = [test for stage in who_tests(group, path) for test in stage]
            assert sorted(found) == sorted(tests)


def test_a_mistake_is_noticed() -> None:
    program = """
import tempfile
from pathlib import Path
from tests.mutation.trial import Copy, run_tests
path, tests = "server/loramux_server/access/token_bucket.py", ["tests/server/test_quotas.py"]
with tempfile.TemporaryDirectory() as folder:
    tree = Copy(Path(folder))
    print(run_tests(tests, 100)[0])
    source = (tree.root / path).read_text()
    assert "min(" in source
    with tree.having(path, source.replace("min(", "max(")):
        print(run_tests(tests, 100)[0])
    assert (tree.root / path).read_text() == source
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("survived\nkilled\n", 0), done.stderr
