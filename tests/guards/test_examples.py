"""Who may see which example, and how a fit weighs them."""

import collections
import importlib.resources
import json

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.guards import contrast, examples
from edgesafe_jax.guards.fitting import GatedFit, fit_gated_head
from edgesafe_jax.guards.heads import head_logits, unsafe_probability
from edgesafe_jax.metrics.refusal import refused_by_pattern

ROLES = ("teacher", "judge", "held_out")
TEXTS = [f"How does machine number {i} work?" for i in range(3000)]


def prompt(text, *, label="benign", source="contrast", category="doors/history"):
    return Prompt(text, source, category, label)


# Roles and folds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role_of", [examples.role_of_objective, examples.role_of_topic])
def test_roles_have_their_shares(role_of):
    counts = collections.Counter(map(role_of, TEXTS))
    shares = {"teacher": 0.6, "judge": 0.2, "held_out": 0.2}
    assert set(counts) == set(shares)
    for role, share in shares.items():
        assert abs(counts[role] / len(TEXTS) - share) < 0.03


def test_the_role_of_an_objective_does_not_hang_on_case_or_punctuation():
    for text in TEXTS[:50]:
        other = text.upper().replace("?", " !")
        assert examples.role_of_objective(other) == examples.role_of_objective(text)
        assert examples.fold_of_objective(other) == examples.fold_of_objective(text)
        assert examples.calibration_fold(other) == examples.calibration_fold(text)


def test_held_out_objectives_are_one_fold_of_five():
    folds = collections.Counter(map(examples.fold_of_objective, TEXTS))
    assert set(folds) == set(range(5))
    for text in TEXTS:
        assert (examples.role_of_objective(text) == "held_out") == (examples.fold_of_objective(text) == 0)


def test_calibration_folds_cut_every_role_into_fifths():
    for role in ROLES:
        texts = [t for t in TEXTS if examples.role_of_objective(t) == role]
        folds = collections.Counter(examples.calibration_fold(t) for t in texts)
        assert set(folds) == set(range(5))
        assert min(folds.values()) > 0.15 * sum(folds.values())


def test_every_contrast_prompt_has_one_role():
    parts = [{p.text for p in examples.contrast_of(role)} for role in ROLES]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(contrast.contrast_prompts())


def test_all_prompts_of_a_topic_have_one_role():
    role_by_topic = {}
    for role in ROLES:
        for chosen in examples.contrast_of(role):
            if not contrast.is_plain(chosen):
                assert role_by_topic.setdefault(contrast.topic_of(chosen), role) == role
    assert set(role_by_topic.values()) == set(ROLES)


def test_both_halves_of_a_pair_have_one_role():
    file = importlib.resources.files("edgesafe_jax.guards") / "data" / "contrast_prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    role_of_text = {p.text: role for role in ROLES for p in examples.contrast_of(role)}
    roles = collections.defaultdict(set)
    labels = collections.defaultdict(set)
    for row in rows:
        if row["pair"] is not None:
            roles[row["pair"]].add(role_of_text[row["prompt"]])
            labels[row["pair"]].add(row["label"])
    assert roles
    assert all(len(found) == 1 for found in roles.values())
    assert all(found == {"harmful", "benign"} for found in labels.values())


@pytest.mark.assets
def test_every_human_pair_has_one_role_and_no_objective_has_two():
    parts = {role: examples.human_pairs(role) for role in ROLES}
    assert sum(map(len, parts.values())) == len(corpora.human_scored("harm"))
    objectives = [{corpora.normalise(p.prompt) for p in pairs} for pairs in parts.values()]
    assert all(objectives)
    assert sum(map(len, objectives)) == len(set().union(*objectives))


@pytest.mark.assets
def test_teacher_judge_and_report_share_no_prompt():
    plain = [examples.plain_of("teacher", 200), examples.plain_of("judge", 200), examples.held_out_questions()]
    assert [len(part) for part in plain] == [200, 200, 200]
    harmful = [examples.harmful_of("teacher", 520), examples.harmful_of("judge", 350)]
    assert [len(part) for part in harmful] == [520, 350]
    for parts in (plain, harmful):
        texts = [{corpora.normalise(p.text) for p in part} for part in parts]
        assert sum(map(len, texts)) == len(set().union(*texts))
    assert {p.label for part in plain for p in part} == {"benign"}
    assert {p.label for part in harmful for p in part} == {"harmful"}


@pytest.mark.assets
def test_no_more_than_its_share_of_questions_is_given_to_a_guard():
    assert examples.plain_of("teacher", 5000) == examples.plain_of("teacher", 200)
    assert examples.plain_of("judge", 3) == examples.plain_of("judge", 200)[:3]


# Kinds, labels, weights -----------------------------------------------------------------------------------------------


def test_kinds():
    assert examples.kind_of(prompt("a", label="harmful", category="doors/harm")) == "harmful_contrast"
    assert examples.kind_of(prompt("a")) == "benign_contrast"
    assert examples.kind_of(prompt("a", category="everyday/plain")) == "plain"
    assert examples.kind_of(prompt("a", label="harmful", source="advbench")) == "harmful"
    assert examples.kind_of(prompt("a", source="questions")) == "plain"


def test_own_answers_are_labelled_by_what_was_asked_and_refusals_are_added():
    asked = [
        *(prompt(f"bad {i}", label="harmful", category="doors/harm") for i in range(5)),
        *(prompt(f"worse {i}", label="harmful", source="advbench", category="") for i in range(4)),
        *(prompt(f"good {i}") for i in range(3)),
        *(prompt(f"everyday {i}", category="everyday/plain") for i in range(2)),
    ]
    said = [f"answer {i}" for i in range(len(asked))]
    own = examples.own_answers(asked, said)
    count = len(asked)
    assert own.prompts[:count] == [p.text for p in asked]
    assert own.responses[:count] == said
    assert own.labels[:count].tolist() == [1.0] * 9 + [0.0] * 5
    assert own.kinds[:count] == ["harmful_contrast"] * 5 + ["harmful"] * 4 + ["benign_contrast"] * 3 + ["plain"] * 2
    # Every fourth of the nine harmful requests.
    assert own.prompts[count:] == ["bad 0", "bad 4", "worse 3"]
    assert own.responses[count:] == list(examples.REFUSALS[:3])
    assert own.labels[count:].tolist() == [0.0, 0.0, 0.0]
    assert own.kinds[count:] == ["refusals"] * 3


def test_no_refusals_are_added_where_nothing_harmful_was_asked():
    own = examples.own_answers([prompt("good")], ["answer"])
    assert own.prompts == ["good"]
    assert own.labels.tolist() == [0.0]


def test_the_added_refusals_are_refusals():
    assert all(map(refused_by_pattern, examples.REFUSALS))


def test_weights_are_spread_over_the_examples_of_a_kind():
    weights = examples.balanced_weights(["a", "b", "a", "a", "b"], {"a": 3.0, "b": 1.0, "unused": 9.0})
    np.testing.assert_allclose(weights, [1.0, 0.5, 1.0, 1.0, 0.5])


def test_a_kind_without_weight_is_named():
    with pytest.raises(ValueError, match="'b'"):
        examples.balanced_weights(["a", "b"], {"a": 1.0})


# The fit --------------------------------------------------------------------------------------------------------------


def fitted(seed=0, num=240):
    """Two populations, told apart by feature 0: people's pairs are unsafe along feature 1, own answers along 2."""
    rng = np.random.default_rng(seed)
    human, own = rng.standard_normal((2, num, 4))
    human[:, 0] += 3
    own[:, 0] -= 3
    human_labels = (human[:, 1] + 0.5 * rng.standard_normal(num) > 0).astype(float)
    own_labels = (own[:, 2] > 0).astype(float)
    answers = examples.OwnAnswers(
        prompts=["?"] * num,
        responses=["!"] * num,
        labels=own_labels,
        kinds=["harmful" if label else "plain" for label in own_labels],
    )
    weights = {"human": 1.0, "harmful": 2.0, "plain": 2.0}
    head = fit_gated_head(
        human_features=human,
        human_labels=human_labels,
        human_folds=np.arange(num) % 5,
        own_features=own,
        own=answers,
        fit=GatedFit(weights, l2_general=0.01, l2_own=0.01, l2_gate=0.01, own_fraction=0.5),
    )
    assert weights == {"human": 1.0, "harmful": 2.0, "plain": 2.0}  # the caller's mapping stays as it was
    return head, (human, human_labels), (own, own_labels)


def test_the_gate_sends_each_answer_to_its_own_head():
    head, (human, human_labels), (own, own_labels) = fitted()
    gate = np.asarray(head_logits(head.gate, jnp.asarray(np.concatenate([human, own]), jnp.float32)))
    assert np.mean((gate > 0) == np.repeat([False, True], len(human))) > 0.97
    for features, labels, least in ((human, human_labels, 0.8), (own, own_labels, 0.9)):
        probs = np.asarray(unsafe_probability(head, jnp.asarray(features, jnp.float32)))
        assert np.mean((probs > 0.5) == labels) > least


def test_the_head_on_human_pairs_is_calibrated_on_scores_it_was_not_fitted_on():
    head, (human, labels), _ = fitted()
    assert float(head.general.slope) != 1.0
    assert float(head.own.slope) == float(head.gate.slope) == 1.0
    logits = np.asarray(head_logits(head.general, jnp.asarray(human, jnp.float32)))
    assert abs(np.mean(1 / (1 + np.exp(-logits))) - labels.mean()) < 0.05
