"""``python -m big_vision_lite`` is ``bvl``."""

import sys

from big_vision_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
