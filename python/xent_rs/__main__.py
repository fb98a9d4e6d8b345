"""``python -m xent_rs`` is the command ``xent-rs``."""

import sys

from xent_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
