"""The default location of stores."""

from pathlib import Path

import platformdirs


def stores_folder() -> Path:
    """Return the folder for stores of servers without --store."""
    return Path(platformdirs.user_data_dir("loramux"))
