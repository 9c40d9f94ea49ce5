"""What a command says where a package is not installed."""

import pytest
import typer

from loramux.cli.options import needs
from loramux_adapters.extras import install_command


def test_a_missing_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, needs("absent", extra="more", what="--thing"):
        import absent.part  # type: ignore[import-not-found]  # noqa: F401
    assert caught.value.exit_code == 1
    message = f"loramux: --thing needs absent: {install_command('more')}\n"
    assert capsys.readouterr() == ("", message)


def test_another_missing_package_is_a_fault() -> None:
    with pytest.raises(ImportError, match="absent"), needs("other", extra="more", what="--thing"):
        import absent  # noqa: F401
