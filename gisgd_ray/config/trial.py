"""What one trial is: frozen pydantic models, checked in full before anything runs.

A field's own bounds are checked when the trial is made; whether the fields go together and suit the
data once these are known (:meth:`TrialConfig.require_consistent`): for a sweep's trials when its
space lists them, for a run of one's own at its start.

``TrialConfig`` = data + model + scheme + training + measurement + seed. Every field has its
bounds and a description here and nowhere else: the command line, the search space, the table
columns and the W&B config are all derived from these models.
"""

from collections.abc import Mapping
from typing import Any

from gisgd_ray.config.checks import DataFacts, check_consistency
from gisgd_ray.config.frozen import canonical, changes, id_of, unflatten
from gisgd_ray.config.sections import Sections
from gisgd_ray.errors import UserError

SCHEMA = 2
"""Of the names of trials. A new field whose default is what was done before changes no name; one
more is due where a default changes, or what a value means. (1 named trials by all their fields.)"""


class TrialConfig(Sections):
    """One training run, completely: equal configs give bit-identical runs on a machine's CPU."""

    @property
    def settings(self) -> str:
        """What differs from the defaults, and the schema, as canonical JSON."""
        return canonical({"schema": SCHEMA, **changes(self, DEFAULT)})

    @property
    def trial_id(self) -> str:
        """Stable name of this configuration, :func:`id_of` its :attr:`settings`."""
        return id_of(self.settings)

    def changed(self, fields: Mapping[str, Any]) -> "TrialConfig":
        """The trial with other values of some fields, by dotted path, their own bounds checked.

        Raises:
            ValidationError: there is no such trial.
        """
        return TrialConfig.model_validate(unflatten({**self.flat(), **fields}))

    def require_consistent(self, given: DataFacts | None = None) -> None:
        """See that the fields go together, on the configured set or on the data ``given`` instead.

        Raises:
            UserError: the first contradiction: which field, which value, what would do.
        """
        try:
            check_consistency(self, given)
        except ValueError as fault:
            raise UserError(str(fault)) from None


DEFAULT = TrialConfig()
