"""``python -m advjax``: the same program as ``advjax``."""

import sys

from advjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
