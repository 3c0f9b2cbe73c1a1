"""What a trial's row says of its W&B run. No W&B here."""

from dataclasses import dataclass
from enum import StrEnum


class Where(StrEnum):
    """Where the W&B run of a trial is; ``OFF``: not in full, since logging ended."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"
    OFF = "off"


@dataclass(frozen=True)
class WandbStatus:
    """Where a trial's run is, and what kept it from being where it was meant to be."""

    where: Where
    fault: str = ""

    def __str__(self) -> str:
        """As a table has it under ``wandb/status``."""
        return f"{self.where}: {self.fault}" if self.fault else str(self.where)

    @staticmethod
    def of(cell: object) -> "WandbStatus | None":
        """What :meth:`__str__` has written into a row; None where it wrote nothing.

        >>> WandbStatus.of("off: HTTP: 403"), WandbStatus.of(None)
        (WandbStatus(where=<Where.OFF: 'off'>, fault='HTTP: 403'), None)
        """
        where, _, fault = str(cell).partition(": ")
        return WandbStatus(Where(where), fault) if where in set(Where) else None
