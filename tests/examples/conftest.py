"""Path of the examples that are scripts with modules of their own, not packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "vowels1991"))
