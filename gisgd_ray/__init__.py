"""Sweeps that test information-theoretic generalization bounds on real SGD runs."""

import os
from importlib.util import find_spec

# A notebook hands its backend down to what it starts (`!python ...`), where it need not be
# installed, and matplotlib then does not load at all. Nothing here is drawn on a screen.
_named = os.environ.get("MPLBACKEND", "").partition("module://")[2].partition(".")[0]
if _named and not find_spec(_named):
    del os.environ["MPLBACKEND"]
