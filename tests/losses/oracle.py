"""What the tests of the losses share: definitions in float64, and a toy language that can be enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from edgesafe_jax.losses import forward_kl, gated_divergence, total_variation

gated_forward_kl = functools.partial(gated_divergence, forward_kl)
gated_total_variation = functools.partial(gated_divergence, total_variation)


def oracle(name, student_logits, teacher_logits, temperature=1.0):
    """The divergences in NumPy, float64, straight from their definitions."""
    q = scipy.special.softmax(np.asarray(student_logits, np.float64) / temperature, axis=-1)
    p = scipy.special.softmax(np.asarray(teacher_logits, np.float64) / temperature, axis=-1)

    def kl(a, b):
        return np.sum(scipy.special.rel_entr(a, b), axis=-1)

    def js(mixture):
        m = mixture * p + (1 - mixture) * q
        return mixture * kl(p, m) + (1 - mixture) * kl(q, m)

    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jensen_shannon": lambda: js(0.5),
        "jensen_shannon_0.2": lambda: js(0.2),
        "skewed_kl": lambda: kl(p, 0.9 * q + 0.1 * p),
        "skewed_kl_0.7": lambda: kl(p, 0.3 * q + 0.7 * p),
        "skewed_reverse_kl": lambda: kl(q, 0.9 * p + 0.1 * q),
        "total_variation": lambda: 0.5 * np.sum(np.abs(p - q), axis=-1),
    }[name]()


def softmax(logits):
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def exact_kl(p, q):
    return np.sum(scipy.special.rel_entr(p, q))


def all_finite(*arrays):
    return all(np.all(np.isfinite(np.asarray(array, np.float32))) for array in arrays)


@functools.cache
def _compiled_sequence(loss):
    def run(case, where):
        def total(case):
            value = loss(**case, where=where)
            return jnp.sum(value), value

        gradient, value = jax.grad(total, has_aux=True)(case)
        return value, gradient

    return jax.jit(run)


def run_sequence(loss, case, where=None):
    """Value, and the gradients of its sum by name."""
    case = {name: jnp.asarray(np.asarray(x, np.float32)) for name, x in case.items()}
    return _compiled_sequence(loss)(case, where)


class ToyLanguage:
    """A base model and a student over a vocabulary of four, all answers enumerable.

    An answer is up to three tokens of which the last is END (0); the third is END for sure, by -inf
    logits. The refusal is (1, 2, END).
    """

    vocab, length, refusal = 4, 3, (1, 2, 0)

    def __init__(self, seed=0, refusal_start_possible=True):
        rng = np.random.default_rng(seed)
        self.prefixes = [
            prefix for length in range(self.length) for prefix in itertools.product(range(1, self.vocab), repeat=length)
        ]
        self.row = {prefix: i for i, prefix in enumerate(self.prefixes)}
        tables = rng.normal(size=(2, len(self.prefixes), self.vocab)).astype(np.float32)
        last = [len(prefix) == self.length - 1 for prefix in self.prefixes]
        tables[:, last, 1:] = -np.inf
        if not refusal_start_possible:
            tables[0, self.row[()], self.refusal[0]] = -np.inf
        self.base, self.student = tables
        self.answers = [(*prefix, 0) for prefix in self.prefixes]
        self.masks = np.array([[t < len(y) for t in range(self.length)] for y in self.answers])
        self.tokens = np.array([y + (0,) * (self.length - len(y)) for y in self.answers])
        # Which row of a table predicts position t of each answer; any where masked.
        self.rows = np.array([[self.row[y[:t]] if t < len(y) else 0 for t in range(self.length)] for y in self.answers])
        self.refusal_index = self.answers.index(self.refusal)
        self.refusal_rows = self.rows[self.refusal_index]

    def log_probs(self, table):
        """[num answers], exact, float64."""
        log_prob = scipy.special.log_softmax(np.asarray(table, np.float64), axis=-1)
        chosen = log_prob[self.rows, self.tokens]
        return np.sum(np.where(self.masks, chosen, 0.0), axis=-1)

    def system(self, safe_prob):
        """p(r|x) of equations 1 and 2 by enumeration, float64."""
        base = np.exp(self.log_probs(self.base))
        p = base * safe_prob
        p[self.refusal_index] += np.sum(base * (1 - safe_prob))
        return p

    def outcomes(self, table, safe_prob):
        """Arguments of the sequence losses for every answer; answering the refusal is answering."""
        log_q = self.log_probs(table)
        return {
            "response_log_prob": log_q,
            "refusal_log_prob": np.full_like(log_q, log_q[self.refusal_index]),
            "safe_prob": np.where(np.arange(len(log_q)) == self.refusal_index, 1.0, safe_prob),
        }

    def gated(self, table, safe_prob):
        num = len(self.answers)
        return {
            "student_logits": table[self.rows],
            "teacher_logits": self.base[self.rows],
            "refusal_logits": jnp.broadcast_to(table[self.refusal_rows], (num, self.length, self.vocab)),
            "refusal_tokens": np.array(self.refusal),
            "safe_prob": np.full(num, safe_prob, np.float32),
            "where": self.masks,
        }

    def expectation(self, values):
        """Mean over answers of the base model; an impossible answer does not count."""
        base = np.exp(self.log_probs(self.base))
        return np.sum(base * np.where(base > 0, values, 0.0))
