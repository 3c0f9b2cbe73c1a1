"""Configuration of training."""

from typing import Literal

from pydantic import Field, model_validator

from gisgd_ray.config.frozen import Frozen, Schedule


class TrainingConfig(Frozen):
    """The optimizer, the stopping rule and the points at which train and test are evaluated."""

    learning_rate: float = Field(0.01, gt=0, description="step size lambda_t before any schedule")
    batch_size: int = Field(60, ge=1, description="samples per mini-batch, b")
    last_batch: Literal["keep", "drop"] = Field(
        "keep",
        description="when b does not divide n: keep the smaller last batch of every epoch, or drop "
        "it (other samples are left out in each epoch)",
    )
    loss: Literal["cross_entropy", "squared"] = Field(
        "cross_entropy",
        description="cross-entropy (nats), or half the squared error to one-hot or to the target",
    )
    initialization: Literal["pytorch", "xavier", "kaiming"] = Field(
        "pytorch",
        description="PyTorch's default; Xavier-normal weights with N(0,1) linear biases as in the "
        "authors' code; or Kaiming-normal weights by fan-out with zero biases as in the AMP "
        "paper's code (Tables 1-3)",
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="of the SGD step; outside the theorem when not 0"
    )
    nesterov: bool = Field(False, description="Nesterov's form of the momentum")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty of the SGD step; outside the theorem when not 0"
    )
    max_gradient_norm: float | None = Field(
        None,
        gt=0,
        description="the scheme's gradient is scaled down to this norm where it is longer (Tables "
        "1-3: 50); null: never",
    )
    lr_milestones: tuple[int, ...] = Field(
        (), description="epochs after which the learning rate is multiplied by lr_factor"
    )
    lr_factor: float = Field(0.1, gt=0, description="factor applied at every milestone")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the training passes: tf32 and bfloat16 (mixed precision) are for speed on "
        "a GPU; what is measured in them is then rounded alike",
    )
    stop_loss: float | None = Field(
        1e-4, gt=0, description="stop once the mean training loss is below this; null: never"
    )
    stop_at_full_accuracy: bool | None = Field(
        None,
        description="stop at 100 % training accuracy; null: exactly when there is label noise",
    )
    max_epochs: int = Field(500, ge=1, description="epoch limit")
    max_steps: int | None = Field(None, ge=1, description="step limit; null: none beyond epochs")
    divergence_loss: float = Field(
        1e3,
        gt=0,
        description="a batch loss (with replicas: their mean) above this, or not finite, ends the "
        "trial as diverged",
    )
    evaluation: Schedule = Field(
        Schedule(), description="when train and test are evaluated and the stopping rule is asked"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.nesterov and self.momentum == 0:
            raise ValueError("training.nesterov = true needs training.momentum > 0, but it is 0")
        if any(m < 1 for m in self.lr_milestones) or list(self.lr_milestones) != sorted(
            set(self.lr_milestones)
        ):
            raise ValueError(
                f"training.lr_milestones = {list(self.lr_milestones)} must be epochs from 1, "
                "ascending"
            )
        return self
