"""The paper's claims, put to the test on a sweep's own tables.

One module per figure, each with ``claims(tables) -> list[Claim]`` over the finished trials; what
they count and compare is in :mod:`gisgd_ray.claims.statistics`. Begin with
:mod:`gisgd_ray.claims.claim`; imports results and nothing that draws. A claim is one of

- a count, about these trials and no others: ``Claim(..., verdict=count_verdict(count))``;
- a test over seeds: ``Claim(..., p_values=t_test(interval, threshold, side="above"))``, of several
  parts ``p_values=all_of(...)`` or ``opposite(...)``. It has no verdict until the module ends with
  ``return corrected_together(found)``.

It holds or fails only where the data say so; otherwise it is undecided, and the report says that
too. With one seed there is nothing to test it by: its evidence is then what that one run shows, and
its verdict "single run".
"""
