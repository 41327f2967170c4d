"""The scripts of analyses/ find each other as they do when they are run."""

import sys
from pathlib import Path

ANALYSES = Path(__file__).parent.parent.parent / "analyses"
if str(ANALYSES) not in sys.path:
    sys.path.append(str(ANALYSES))  # behind tests/, which has a spectra.py too
