"""What W&B's own reader finds in the record of an offline run."""

import json
import subprocess
import sys
from pathlib import Path


def points_in(record: Path) -> int:
    """How many points it tells."""
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return sum(json.loads(line)["type"] == "history" for line in told.stdout.splitlines())
