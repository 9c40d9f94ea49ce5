"""The model and the adapters that are part of the package."""

from pathlib import Path

DEMO = Path(__file__).parents[2] / "server" / "loramux_server" / "demo"
