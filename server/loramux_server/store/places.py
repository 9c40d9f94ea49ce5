"""Where stores are by default."""

from pathlib import Path

import platformdirs


def stores_folder() -> Path:
    """Return the folder of the stores of servers that were given no --store."""
    return Path(platformdirs.user_data_dir("loramux"))
