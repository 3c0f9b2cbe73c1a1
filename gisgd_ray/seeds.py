"""Seeds of random draws, by what a draw is for; no torch.

They are derived by hashing, so two purposes never share a stream, and a purpose may carry a
counter (an epoch, say): such a draw needs no saved state, and a restored trial repeats it exactly.
"""

import hashlib


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derived_seed(0, "batching", epoch)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
