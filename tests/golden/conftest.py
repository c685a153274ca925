"""The path of the golden test's scripts, which import each other by name."""

import sys
from pathlib import Path

# Last, so that no script hides an installed module.
sys.path.append(str(Path(__file__).parent))
