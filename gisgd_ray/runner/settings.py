"""What all trials of a launch are run with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gisgd_ray.runner.resources import Resources
from gisgd_ray.tracking.run import WandbSettings


@dataclass(frozen=True)
class RunSettings:
    """Crosses to the trials' processes as a plain dict."""

    resources: Resources
    """What Ray sets aside for each."""
    handover: str
    """The name of what the driver hands over in secret (:mod:`gisgd_ray.runner.handover`), the
    location of the checkpoints among it."""
    checkpoint_every_s: float
    """Between two checkpoints of a trial."""
    wandb: WandbSettings

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "RunSettings":
        resources, wandb = Resources(**plain["resources"]), WandbSettings(**plain["wandb"])
        return RunSettings(**{**plain, "resources": resources, "wandb": wandb})
