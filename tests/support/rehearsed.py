"""A sweep's script as it is typed, with the data of a rehearsal.

``python -m tests.support.rehearsed sweeps/NAME.py ...``
"""

import os
import runpy
import sys
from pathlib import Path

from tests.support.stand_in import FOLDER, few_samples

if __name__ == "__main__":
    few_samples(Path(os.environ[FOLDER]))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
