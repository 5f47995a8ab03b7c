"""What does ``python -m pyoverlay`` do?  The same as the command ``pyoverlay``."""

import sys

from pyoverlay.cli import main

if __name__ == "__main__":
    sys.exit(main())
