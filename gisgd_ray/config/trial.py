"""What one trial is: frozen pydantic models, checked in full before anything runs.

``TrialConfig`` = data + model + scheme + training + measurement + seed. Every field has its
bounds and a description here and nowhere else: the command line, the search space, the table
columns and the W&B config are all derived from these models.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from gisgd_ray.config.checks import check_consistency
from gisgd_ray.config.frozen import id_of, unflatten
from gisgd_ray.config.scheme_checks import check_scheme
from gisgd_ray.config.sections import Sections


class TrialConfig(Sections):
    """One training run, completely: equal configs give bit-identical runs on a machine's CPU."""

    @property
    def trial_id(self) -> str:
        """Stable name of this configuration, :func:`id_of` all its fields."""
        return id_of(self.model_dump(mode="json"))

    def changed(self, fields: Mapping[str, Any]) -> "TrialConfig":
        """The trial with other values of some fields, by dotted path; validated like any other.

        Raises:
            ValidationError: there is no such trial.
        """
        return TrialConfig.model_validate(unflatten({**self.flat(), **fields}))

    @model_validator(mode="after")
    def _check(self) -> "TrialConfig":
        check_consistency(self)
        check_scheme(self)
        return self
