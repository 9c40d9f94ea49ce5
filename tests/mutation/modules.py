"""What is mutated, and the tests that should notice: the quickest to do so first."""

from pathlib import Path

from tests.mutation.trial import ROOT

_STORE = (
    "registry", "references", "catalog", "aliases", "expiry", "quota", "partial_uploads",
    "upload_service", "directory", "package_settings", "adapter_service", "storage", "lifecycle",
    "quotas", "keys", "key_commands", "gate", "check", "files",
)  # fmt: skip
_ACCESS = ("keys", "gate", "rules", "quotas", "exposure", "key_commands", "audit", "tls")
_VALIDATOR = (
    "tensor_file", "fit", "manifest", "package", "contents", "sidecar_files", "virtual_tokens",
    "vocabulary", "hostile_packages", "base", "checks", "saved", "heads", "embedding",
    "stacks", "experts",
)  # fmt: skip
_STATES = (
    "named_pool", "state_keeper", "recurrent", "recurrent_batches", "scheduler", "running_ahead",
    "engine_properties",
)  # fmt: skip
_FITS = ("activated", "vocabulary", "heads", "virtual_tokens")

GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "validator": (
        [f"adapters/loramux_adapters/{name}.py"
         for name in ("tensorfile", "package", "packing", "peft_folder", "manifest", "strict_json",
                      "fit", "stacks", "experts")],
        [f"tests/adapters/test_{name}.py" for name in _VALIDATOR],
    ),
    "access": (
        ["server/loramux_server/access/*.py"],
        [f"tests/server/test_{name}.py" for name in _ACCESS],
    ),
    "store": (
        ["server/loramux_server/store/*.py"],
        [f"tests/server/test_{name}.py" for name in _STORE]
        # Those of packages, which an upload has to fit to the base.
        + [f"tests/adapters/test_{name}.py" for name in _FITS]
        + ["tests/crash/test_faults.py", "tests/seeded/test_store_bugs.py"],
    ),
    "states": (
        [f"server/loramux_server/engine/{name}.py" for name in ("named_pool", "state_keeper")]
        + [f"server/loramux_server/models/{name}.py"
           for name in ("recurrent/states", "recurrent/parts", "recurrent/recurrent",
                        "recurrent/in_place", "part_scheduler")],
        [f"tests/server/test_{name}.py" for name in _STATES],
    ),
}  # fmt: skip
"""Name -> its files, and their tests."""


def files_in(group: str) -> list[str]:
    """Return the files of `group`, from the root of the repository."""
    found = [path for pattern in GROUPS[group][0] for path in sorted(ROOT.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found]


def who_tests(group: str, path: str) -> list[list[str]]:
    """Return the tests of a file: first those that are called like it, then the others."""
    stem = Path(path).stem.rstrip("s").replace("_", "")
    named = [test for test in GROUPS[group][1] if stem in test.replace("_", "")]
    others = [test for test in GROUPS[group][1] if test not in named]
    return [tests for tests in (named, others) if tests]
