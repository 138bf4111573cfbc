"""Losses over chunks of hidden states against the same losses over whole logits."""

import doctest
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import NamedSharding, PartitionSpec

from edgesafe_jax import losses, parallel
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses import fused, linear_divergence, linear_head, linear_log_prob

B, T, D, V = 2, 5, 6, 37
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.standard_normal((B, T, D)).astype(np.float32) for _ in range(2))
HEAD = RNG.standard_normal((V, D)).astype(np.float32)
CERTAIN = np.array([[0.0, 0.3, 1.0, 0.0, 0.9], [1.0, 1.0, 0.0, 0.5, 0.0]], np.float32)
TOKENS = RNG.integers(0, V, (B, T))
WHERE = np.array([[True, True, True, False, True], [True, True, True, True, False]])
WEIGHTS = RNG.uniform(size=(B, T)).astype(np.float32)
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "total_variation": losses.total_variation,
    "jensen_shannon": losses.jensen_shannon,
    "skewed_kl": functools.partial(losses.skewed_kl, skew=0.2),
    "skewed_reverse_kl": losses.skewed_reverse_kl,
    "warm": functools.partial(losses.total_variation, temperature=2.0),
}


def teacher_logits(teacher, head, temperature=1.0):
    """The mixture of the teacher at a temperature with its certain token, in float64."""
    probs = scipy.special.softmax(np.float64(teacher) @ np.float64(head).T / temperature, axis=-1)
    probs = (1 - CERTAIN[..., None]) * probs + CERTAIN[..., None] * np.eye(V)[TOKENS]
    with np.errstate(divide="ignore"):
        return np.log(probs).astype(np.float32)


def whole(divergence, student, teacher, head):
    temperature = getattr(divergence, "keywords", {}).get("temperature", 1.0)
    return functools.partial(divergence, temperature=1.0)(
        student_logits=student @ head.T / temperature,
        teacher_logits=jnp.asarray(teacher_logits(teacher, head, temperature)),
        where=WHERE,
    )


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_equal_those_over_whole_logits(name, chunk_size):
    def chunked(student):
        (value,) = linear_divergence(
            (DIVERGENCES[name],),
            student_hidden=student,
            teacher_hidden=TEACHER,
            head=HEAD,
            certain_prob=CERTAIN,
            certain_tokens=TOKENS,
            where=WHERE,
            chunk_size=chunk_size,
        )
        return jnp.sum(WEIGHTS * value), value

    def plain(student):
        value = whole(DIVERGENCES[name], student, TEACHER, HEAD)
        return jnp.sum(WEIGHTS * value), value

    gradient, value = jax.jit(jax.grad(chunked, has_aux=True))(STUDENT)
    expected_gradient, expected = jax.grad(plain, has_aux=True)(jnp.asarray(STUDENT))
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~WHERE], 0)
    np.testing.assert_array_equal(np.asarray(value)[~WHERE], 0)


def test_several_divergences_share_a_pass_and_keep_their_own_gradients():
    pair = (losses.forward_kl, losses.total_variation)
    both = functools.partial(linear_divergence, teacher_hidden=TEACHER, head=HEAD)

    def mixed(student):
        kl, tv = both(pair, student_hidden=student)
        return jnp.sum(WEIGHTS * kl) + 3 * jnp.sum(tv)

    def apart(student):
        (kl,), (tv,) = (both((d,), student_hidden=student) for d in pair)
        return jnp.sum(WEIGHTS * kl) + 3 * jnp.sum(tv)

    np.testing.assert_allclose(jax.grad(mixed)(STUDENT), jax.grad(apart)(STUDENT), rtol=1e-5, atol=1e-6)


def test_total_variation_of_a_student_that_is_its_teacher_has_no_gradient():
    def loss(student):
        return jnp.sum(
            linear_divergence((losses.total_variation,), student_hidden=student, teacher_hidden=STUDENT, head=HEAD)[0]
        )

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_log_prob_is_that_of_the_tokens():
    def chunked(hidden):
        value = linear_log_prob(hidden=hidden, tokens=TOKENS, head=HEAD, where=WHERE, chunk_size=4)
        return jnp.sum(WEIGHTS * value), value

    gradient, value = jax.grad(chunked, has_aux=True)(jnp.asarray(STUDENT))
    log_q = scipy.special.log_softmax(np.float64(STUDENT) @ np.float64(HEAD).T, axis=-1)
    expected = np.where(WHERE, np.take_along_axis(log_q, TOKENS[..., None], -1)[..., 0], 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # d log q_y / d h = (one_hot(y) - q) W
    expected = (WEIGHTS * WHERE)[..., None] * ((np.eye(V)[TOKENS] - np.exp(log_q)) @ HEAD)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_teacher_and_head_are_frozen():
    def loss(teacher, head):
        return jnp.sum(
            linear_divergence((losses.forward_kl,), student_hidden=STUDENT, teacher_hidden=teacher, head=head)[0]
        )

    for gradient in jax.grad(loss, argnums=(0, 1))(jnp.asarray(TEACHER), jnp.asarray(HEAD)):
        np.testing.assert_array_equal(gradient, 0)


def test_masked_positions_may_hold_anything():
    broken = np.where(WHERE[..., None], STUDENT, np.nan)

    def loss(student, teacher):
        (value,) = linear_divergence(
            (losses.forward_kl,), student_hidden=student, teacher_hidden=teacher, head=HEAD, where=WHERE
        )
        return jnp.sum(value)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(broken), np.where(WHERE[..., None], TEACHER, np.inf))
    expected, expected_gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT), TEACHER)
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_annealed_scalars_are_arguments_of_one_program():
    def loss(student, temperature, mixture):
        pair = (
            functools.partial(losses.jensen_shannon, temperature=temperature, mixture=mixture),
            functools.partial(losses.forward_kl, temperature=temperature),
        )
        found = linear_divergence(
            pair,
            student_hidden=student,
            teacher_hidden=TEACHER,
            head=HEAD,
            certain_prob=CERTAIN,
            certain_tokens=TOKENS,
            where=WHERE,
            chunk_size=4,
        )
        return jnp.sum(found[0]) + 2 * jnp.sum(found[1])

    traced = jax.jit(jax.value_and_grad(chex.assert_max_traces(loss, n=1)))
    for temperature, mixture in ((1.0, 0.5), (3.0, 0.1)):
        value, gradient = traced(STUDENT, jnp.float32(temperature), jnp.float32(mixture))
        expected, expected_gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT), temperature, mixture)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own_head", [False, True])
def test_gradient_of_the_head_is_that_over_whole_logits(own_head):
    """Through the student's logits alone: the teacher keeps its head."""
    frozen = (HEAD + 1 if own_head else HEAD).astype(np.float32)

    def chunked(student, head):
        kl, tv = linear_divergence(
            (losses.forward_kl, losses.total_variation),
            student_hidden=student,
            teacher_hidden=(TEACHER, frozen) if own_head else TEACHER,
            head=head,
            where=WHERE,
            chunk_size=4,
            head_gradient=True,
        )
        log_prob = linear_log_prob(
            hidden=student, tokens=TOKENS, head=head, where=WHERE, chunk_size=4, head_gradient=True
        )
        return jnp.sum(WEIGHTS * (kl + 3 * tv - log_prob))

    def plain(student, head):
        given = {"student_logits": student @ head.T, "teacher_logits": jnp.asarray(TEACHER @ frozen.T), "where": WHERE}
        log_q = jnp.take_along_axis(jax.nn.log_softmax(student @ head.T), TOKENS[..., None], axis=-1)[..., 0]
        terms = losses.forward_kl(**given) + 3 * losses.total_variation(**given) - jnp.where(WHERE, log_q, 0.0)
        return jnp.sum(WEIGHTS * terms)

    found = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(jnp.asarray(STUDENT), HEAD)
    expected = jax.value_and_grad(plain, argnums=(0, 1))(jnp.asarray(STUDENT), jnp.asarray(HEAD))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_any_leading_axes_and_a_projection_of_ones_own():
    def project(head, hidden):
        return 2.0 * linear_head(head["matrix"], hidden)

    value = linear_log_prob(hidden=STUDENT[None], tokens=TOKENS[None], head={"matrix": HEAD}, project=project)
    expected = linear_log_prob(hidden=2.0 * STUDENT, tokens=TOKENS, head=HEAD)
    np.testing.assert_allclose(value[0], expected, rtol=1e-5)
    alone = linear_log_prob(hidden=2.0 * STUDENT[1], tokens=TOKENS[1], head=HEAD)
    np.testing.assert_allclose(alone, expected[1], rtol=1e-5)


def test_one_compilation_and_sharded_equals_unsharded():
    mesh = parallel.make_data_mesh(8)
    rng = np.random.default_rng(1)
    student, teacher = (rng.standard_normal((16, 3, D)).astype(np.float32) for _ in range(2))

    @jax.jit
    def gradient(student, teacher, head):
        def loss(student):
            return jnp.sum(
                linear_divergence(
                    (losses.forward_kl,), student_hidden=student, teacher_hidden=teacher, head=head, chunk_size=16
                )[0]
            )

        return jax.value_and_grad(loss)(student)

    expected, whole_gradient = gradient(student, teacher, HEAD)
    gradient(student + 1, teacher, HEAD)
    assert gradient._cache_size() == 1
    value, split = gradient(*parallel.shard_batch((student, teacher), mesh), parallel.replicate(HEAD, mesh))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(split, whole_gradient, rtol=1e-5, atol=1e-6)
    assert split.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 3)


def test_peak_memory_does_not_grow_with_the_positions():
    """The temporaries of the compiled program hold the logits of a chunk, not of the batch."""

    def temporaries(length):
        def loss(student, teacher, head):
            (value,) = linear_divergence(
                (losses.forward_kl,), student_hidden=student, teacher_hidden=teacher, head=head, chunk_size=8
            )
            return jnp.sum(value)

        hidden = jax.ShapeDtypeStruct((1, length, 4), jnp.float32)
        head = jax.ShapeDtypeStruct((4096, 4), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(hidden, hidden, head).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_buffer_of_logits = 512 * 4096 * 4
    assert temporaries(512) - temporaries(16) < one_buffer_of_logits / 8


def test_one_divergence_or_several():
    both = functools.partial(linear_divergence, student_hidden=STUDENT, teacher_hidden=TEACHER, head=HEAD)
    alone = both(losses.forward_kl)
    assert alone.shape == (B, T)
    for several in ((losses.forward_kl,), [losses.forward_kl]):
        (found,) = both(several)
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize(
    ("head", "project", "message"),
    [
        (HEAD[:, :4], linear_head, r"The head \(shape \(37, 4\)\) gives no logits for \w+ of width D=6"),
        (HEAD.T, linear_head, r"The head \(shape \(6, 37\)\) gives no logits for \w+ of width D=6"),
        (HEAD[0], linear_head, r"The head \(shape \(6,\)\) gives no logits"),
        ({"a": HEAD, "b": HEAD[:, :4]}, lambda head, h: h @ head["b"].T, r"The head \(2 arrays\) gives no logits"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_head_of_another_width_is_refused(head, project, message, jitted):
    def divergence(head):
        return linear_divergence(
            losses.forward_kl, student_hidden=STUDENT, teacher_hidden=TEACHER, head=head, project=project
        )

    def log_prob(head):
        return linear_log_prob(hidden=STUDENT, tokens=TOKENS, head=head, project=project)

    for loss in (divergence, log_prob):
        with pytest.raises(ConfigError, match=message):
            (jax.jit(loss) if jitted else loss)(head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_hidden": np.zeros(3, np.float32)}, r"student_hidden has shape \(3,\)"),
        ({"teacher_hidden": TEACHER[:, :2]}, "teacher_hidden has shape"),
        ({"student_hidden": np.zeros((2, 3), int)}, "student_hidden has dtype int"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"certain_prob": CERTAIN}, "both, or neither"),
        ({"certain_prob": CERTAIN[0], "certain_tokens": TOKENS}, "certain_prob has shape"),
        ({"certain_prob": CERTAIN, "certain_tokens": CERTAIN}, "certain_tokens has dtype float32"),
        ({"where": WHERE[0]}, "where has shape"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"student_hidden": STUDENT, "teacher_hidden": TEACHER, "head": HEAD, **changes}
    with pytest.raises(ValueError, match=message):
        linear_divergence((losses.forward_kl,), **arguments)


def test_examples():
    found = doctest.testmod(fused)
    assert found.attempted > 0
    assert found.failed == 0


def test_bad_tokens():
    with pytest.raises(ValueError, match="tokens has dtype float32"):
        linear_log_prob(hidden=STUDENT, tokens=CERTAIN, head=HEAD)
    with pytest.raises(ValueError, match=r"tokens has shape \(5,\), expected \(2, 5\)"):
        linear_log_prob(hidden=STUDENT, tokens=TOKENS[0], head=HEAD)
