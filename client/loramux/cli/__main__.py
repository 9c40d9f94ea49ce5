"""`python -m loramux.cli` is the same as `loramux`."""

import sys

from loramux.cli import main

sys.exit(main())
