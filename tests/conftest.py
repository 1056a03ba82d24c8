"""Settings of the whole suite."""

import os
import sys
from pathlib import Path

# Before anything imports TensorFlow: its start-up lines hide the failures.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# `import helpers` works in every test file, whichever folder it is in.
sys.path.insert(0, str(Path(__file__).parent))
