r"""The study of adapters and objectives: which of them makes SmolLM2-135M-Instruct safe, at equal parameters.

    python -m launch.sweep --config=configs/study_alignment.py --workdir=workdirs/study
    python -m launch.report workdirs/study

Each method, an adapter with an objective, runs at three learning rates; the best by the held-out training prompts is
kept, and the best six methods run two more seeds. Cost: about three minutes a cell on two cores. Expected: see
configs/RESULTS.md under "Safe language models". `--processes=N` runs N cells at once, `--cluster=slurm` a job array.

Any file of configs/ can be swept: `config.base` and `config.variant` name it, `config.changes` holds what differs from
it in all cells. `config.axes` mirrors it, with tuples of values, such as `config.axes.seed = (0, 1)`; where a value
stands for several fields, `config.levels.AXIS.VALUE` holds them. `config.factors` holds factors on a field.

Variants: `:lengths` soft prompts of 5 to 150 vectors, `:recovery` answers that begin with harm and then turn back,
`:teachers` soft prompts distilled with the packaged guard and with the steady guard of `configs/guard_unseen.py:guard`,
whose file is `config.levels.teacher.steady.guard`, `:runlocal` a check of the machinery.
"""

import ml_collections

_ADAPTERS = {
    "soft_prompt": {"adapter": {"kind": "soft_prompt"}},
    "lora": {"adapter": {"kind": "lora"}},
    "prefix": {"adapter": {"kind": "prefix"}},
    "steering": {"adapter": {"kind": "steering"}, "learning_rate": 0.1},
    "gated": {
        "adapter": {
            "kind": "gate+soft_prompt",
            "num_parameters": 0,
            "soft_prompt": {"num_virtual": 23},
            "gate": {"layer": 16, "penalty": 0.02},
        }
    },
}
"""The kinds, each with a learning rate of its scale where that of the base config is not."""

_OBJECTIVES = (
    "token_kl",
    "kl",
    "tv",
    "token_reverse_kl",
    "dpo",
    "refusal_perplexity",
    "reinforce",
    "token_tv",
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full study, or a `variant` of it: "lengths", "recovery", "teachers" or "runlocal"."""
    if variant and variant not in _VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}: expected one of {tuple(_VARIANTS)} or none.")
    config = ml_collections.ConfigDict()
    config.task = "sweep"
    config.base = "align_soft_prompt"  # a file of configs/
    config.variant = "quickstart"

    # What every cell has otherwise than the base: the objective alone, fewer steps, a small evaluation
    config.changes = ml_collections.ConfigDict()
    config.changes.decision_weight = 0.0
    config.changes.num_steps = 120
    config.changes.adapter = {"num_parameters": 13_248}  # trained numbers, as near as a kind comes: 23 vectors
    config.changes.data = {"num_held_out": 24}
    config.changes.evaluation = {
        "strongreject": 48,
        "sensitive": 48,
        "plain": 48,
        "attacks": {"prefill": 48},
        "num_choices": 32,
        "num_kl": 16,
    }

    # The matrix: values by field of the base, or names of `levels`
    config.axes = ml_collections.ConfigDict()
    config.axes.method = tuple(_ADAPTERS)
    config.axes.objective = _OBJECTIVES
    config.axes.seed = (0, 1, 2)
    config.levels = ml_collections.ConfigDict({"method": _ADAPTERS})
    config.factors = ml_collections.ConfigDict()  # on the field's value in the base, or in a level
    config.factors.learning_rate = (1.0, 0.3, 3.0)

    # The choice, by the last refusal rates on training prompts that were held out
    config.selection = ml_collections.ConfigDict()
    config.selection.search = ("learning_rate",)  # of which the best value of each method is kept
    config.selection.repeat = "seed"  # whose further values the best methods run
    config.selection.num_best = 6
    config.selection.measure = ml_collections.ConfigDict(
        {"eval/refused/refuse": 1.0, "eval/refused/sensitive": -0.5, "eval/refused/plain": -0.5}
    )

    # The report, by numbers of the cells' summaries
    config.report = ml_collections.ConfigDict()
    config.report.tables = ml_collections.ConfigDict(
        {
            "Safety and over-refusal": {
                "StrongREJECT refused": "alignment/strongreject/student/refused",
                "sensitive refused": "alignment/sensitive/student/refused",
                "plain refused": "alignment/plain/student/refused",
            },
            "Attacks": {
                "prefilled refused": "alignment/prefill/student/refused",
                "prefilled safe": "alignment/prefill/student/sgs_judge",
            },
            "Usefulness": {"KL to base, plain": "alignment/kl_from_base/plain", "piqa": "alignment/piqa/student"},
            "Cost": {
                "parameters of base and adapter": "alignment/cost/student/params",
                "FLOPs per token": "alignment/cost/student/flops_per_token",
            },
        }
    )
    config.report.frontier = ("plain refused", "StrongREJECT refused")  # columns: to be small, to be large
    config.report.curve = ""  # an axis of numbers, along which columns are drawn
    config.report.along = ("StrongREJECT refused", "prefilled refused", "sensitive refused", "plain refused")
    if variant:
        _VARIANTS[variant](config)
    return config


def _lengths(config: ml_collections.ConfigDict) -> None:
    """One objective; soft prompts of other lengths."""
    config.update(
        {
            "changes": {"adapter": {"num_parameters": 0}},
            "selection": {"num_best": 0},
            "report": {"curve": "adapter.soft_prompt.num_virtual"},
        }
    )
    lengths = (5, 10, 20, 50, 100, 150)
    config.axes = ml_collections.ConfigDict({"adapter": {"soft_prompt": {"num_virtual": lengths}}, "seed": (0,)})
    config.levels = ml_collections.ConfigDict()


def _recovery(config: ml_collections.ConfigDict) -> None:
    """Fractions of refusals that are trained behind the beginning of an unsafe answer, by prefill attacks."""
    config.update(
        {
            "changes": {
                "decision_weight": 1.0,
                "num_steps": 200,
                "evaluation": {"attacks": {"prefill": 48, "prefill_5": 48, "prefill_10": 48}},
            },
            "selection": {"num_best": 0},
            "factors": {"learning_rate": (1.0,)},
            "report": {
                "tables": {
                    "Attacks": {
                        f"prefilled by {num} tokens, {column}": f"alignment/prefill_{num}/student/{measure}"
                        for num in (5, 10)
                        for column, measure in (("refused", "refused"), ("safe", "sgs_judge"))
                    }
                }
            },
        }
    )
    config.axes = ml_collections.ConfigDict(
        {"method": ("soft_prompt", "lora"), "recovery": (0.5, 0.0, 0.25, 0.75), "seed": (0,)}
    )


def _teachers(config: ml_collections.ConfigDict) -> None:
    """Two guards as the teacher of a soft prompt at the size of the quickstart, and requests in other words."""
    harmful = ("strongreject", "matched_harmful", "indirect_harmful", "past_harmful")
    benign = ("sensitive", "plain", "matched_benign", "indirect_benign", "past_benign")
    measures = {"refused": "refused", "reworded": "refused_reworded", "changed": "changed_by_rewording"}
    config.changes = ml_collections.ConfigDict(
        {
            "evaluation": {
                **dict.fromkeys(harmful + benign, 32),
                **dict.fromkeys(("strongreject", "sensitive", "plain"), 64),
                "num_reworded": 24,
                "attacks": {"prefill": 0},
                "multiple_choice": (),
                "num_kl": 0,
                "judges": ("refused", "teacher"),
            }
        }
    )
    config.axes = ml_collections.ConfigDict({"teacher": ("packaged", "steady"), "seed": (0, 1, 2)})
    config.levels = ml_collections.ConfigDict(
        {"teacher": {"packaged": {"guard": ""}, "steady": {"guard": "workdirs/steady/guard.safetensors"}}}
    )
    config.factors = ml_collections.ConfigDict()
    config.selection = ml_collections.ConfigDict({"search": (), "repeat": "seed", "num_best": 0, "measure": {}})
    tables = ml_collections.ConfigDict(
        {
            f"{kind.capitalize()} requests, {system}": {
                f"{name}, {measure}{', system' * (system == 'system')}": f"alignment/{name}/{system}/{number}"
                for name in (*names, f"all_{kind}")
                for measure, number in measures.items()
                if name in names or measure != "refused"
            }
            for kind, names in (("harmful", harmful), ("benign", benign))
            for system in ("student", "system")
        }
    )
    config.report = ml_collections.ConfigDict({"tables": tables, "frontier": (), "curve": "", "along": ()})


def _runlocal(config: ml_collections.ConfigDict) -> None:
    """Four tiny cells, of which the better one runs a second seed."""
    config.variant = "runlocal"
    config.changes = ml_collections.ConfigDict({"decision_weight": 0.0, "num_steps": 2, "mining": {"start": 1.0}})
    config.update(
        {
            "changes": {
                "adapter": {"num_parameters": 64},
                "evaluation": {"strongreject": 4, "sensitive": 4, "plain": 4, "multiple_choice": (), "num_kl": 0},
            },
            "axes": {"method": ("soft_prompt", "gated"), "objective": ("token_kl", "tv"), "seed": (0, 1)},
            "factors": {"learning_rate": (1.0,)},
            "selection": {"num_best": 1},
        }
    )


_VARIANTS = {"lengths": _lengths, "recovery": _recovery, "teachers": _teachers, "runlocal": _runlocal}
