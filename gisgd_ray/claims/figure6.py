"""What the paper reads off Figure 6 (appendix E.3): learning rate and batch size in Eq. 3."""

from gisgd_ray.claims import (
    Claim,
    joint_verdict,
    opposite_verdict,
    sign_verdict,
    stratified_rank_correlation,
)
from gisgd_ray.claims.points import finished
from gisgd_ray.panels import panels
from gisgd_ray.results import ResultTables

RATE, BATCH = "training.learning_rate", "training.batch_size"
TRAJECTORY, FLATNESS = "term/trajectory_factor", "term/flatness_factor"


def claims(tables: ResultTables) -> list[Claim]:
    """Figure 6 for each model and dataset: three claims on the two factors.

    Statistic: Spearman's rho of a factor with one axis, the other axis and the seed as strata.
    n: the trials of strata in which that axis varies.
    """
    found = []
    for where, group in panels(finished(tables), [RATE, BATCH]).items():
        rates = {
            factor: stratified_rank_correlation(group, RATE, factor, strata=[BATCH, "seed"])
            for factor in (TRAJECTORY, FLATNESS)
        }
        batches = {
            factor: stratified_rank_correlation(group, BATCH, factor, strata=[RATE, "seed"])
            for factor in (TRAJECTORY, FLATNESS)
        }
        found += [
            Claim(
                text=f"The learning rate moves the two factors in opposite directions ({where}).",
                test="Spearman's ρ of each factor with the learning rate at fixed batch size; "
                "both signs established at 5 % and opposite",
                evidence=f"trajectory {rates[TRAJECTORY]}; flatness {rates[FLATNESS]}",
                verdict=opposite_verdict(rates[TRAJECTORY], rates[FLATNESS]),
            ),
            Claim(
                text=f"The trajectory factor falls with batch size and the flatness factor rises "
                f"({where}).",
                test="Spearman's ρ of each factor with batch size at fixed learning rate; "
                "trajectory negative and flatness positive, both established at 5 %",
                evidence=f"trajectory {batches[TRAJECTORY]}; flatness {batches[FLATNESS]}",
                verdict=joint_verdict(
                    sign_verdict(batches[TRAJECTORY], expected=-1),
                    sign_verdict(batches[FLATNESS], expected=+1),
                ),
            ),
            Claim(
                text=f"A smaller batch finds a flatter minimum ({where}).",
                test="Spearman's ρ of the Hessian trace with batch size at fixed learning rate; "
                "positive, established at 5 %",
                evidence=str(batches[FLATNESS]),
                verdict=sign_verdict(batches[FLATNESS], expected=+1),
            ),
        ]
    return found
