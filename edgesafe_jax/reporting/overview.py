"""The picture of README: refusals by system and returns by planner, from the results files."""

from collections.abc import Mapping

from edgesafe_jax.reporting.curves import curves
from edgesafe_jax.reporting.plots import bars, side_by_side
from edgesafe_jax.reporting.results import Result


def overview_picture(found: Mapping[str, Result]) -> bytes:
    """Draws refused rates of base model, student and system, and returns of planners over their budgets.

    Args:
      found: results by name; those of `align_soft_prompt` and `plan_budgets` are read.

    Returns:
      A PNG.
    """
    lm, planning = found["align_soft_prompt"], found["plan_budgets"]
    sets = dict.fromkeys(number.name.split("/")[1] for number in lm.numbers if number.name.startswith("refused/"))
    refused = {
        name: {who: lm.number(f"refused/{name}/{who}") for who in ("base", "student", "system")} for name in sets
    }
    budgets, task = {"iCEM": (50, 100, 300, 500), "CEM": (50, 100, 300, 500, 2000)}, "HalfCheetah, 150 steps"
    returns = {p: [(b, planning.number(f"{task}/{p}/{b} trajectories")) for b in budgets[p]] for p in budgets}
    left = bars(refused, xlabel="fraction refused", title="A guard distilled into 46 vectors", limits=(0, 1))
    x, y = "trajectories per control step", "return over 150 steps"
    right = curves(returns, xlabel=x, ylabel=y, title="Planning on HalfCheetah", log_x=True)
    return side_by_side([left, right])
