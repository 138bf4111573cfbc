"""Small classifiers on frozen features: standardised linear maps, calibrated, and a gated pair of them."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from edgesafe_jax.typing import Array


@flax.struct.dataclass
class Head:
    """Parameters of a head over M features.

    Log-odds of being unsafe = slope * (linear . (features - mean) * scale + bias) + offset.

    Attributes:
      mean: `[M]`, subtracted from the features.
      scale: `[M]`, multiplied after that.
      linear: `[M]`.
      bias: scalar.
      slope: scalar of the calibration, above 0.
      offset: scalar of the calibration.
    """

    mean: Array
    scale: Array
    linear: Array
    bias: Array
    slope: Array
    offset: Array


@flax.struct.dataclass
class GatedHead:
    """Two heads and a gate between them.

    P(unsafe) = (1 - g) sigmoid(general) + g sigmoid(own), where g is the gate's probability that the answer is one of
    the guarded model itself. Its own short answers and the long ones of larger models, which people have scored, are so
    unlike that one threshold does not serve both.

    Attributes:
      general: fitted on answers scored by people.
      own: fitted on answers of the guarded model.
      gate: tells the two apart.
    """

    general: Head
    own: Head
    gate: Head


def unsafe_probability(head: GatedHead, features: Array) -> Array:
    """Returns P(unsafe), `[N]`, of features `[N, M]`."""
    gate = jax.nn.sigmoid(head_logits(head.gate, features))
    general = jax.nn.sigmoid(head_logits(head.general, features))
    own = jax.nn.sigmoid(head_logits(head.own, features))
    return (1 - gate) * general + gate * own


def unsafe_log_odds(head: GatedHead, features: Array) -> Array:
    """Returns the log-odds of `unsafe_probability`, `[..., N]`, of features `[..., N, M]`, finite where that saturates.

    Sums of log-probabilities instead of the logarithm of a mixture: the gradient reaches confident verdicts too.
    """
    # Standardisation folded into the weights: the features, which are many, are read once for all three.
    parts = (head.gate, head.general, head.own)
    weights = jnp.stack([part.scale * part.linear for part in parts], axis=-1)
    shifts = [part.bias - part.mean @ (part.scale * part.linear) for part in parts]
    scores = jnp.asarray(features, weights.dtype) @ weights
    gate, general, own = (
        part.slope * (scores[..., i] + shift) + part.offset
        for i, (part, shift) in enumerate(zip(parts, shifts, strict=True))
    )

    def log_mixture(sign: float) -> Array:
        return jnp.logaddexp(
            jax.nn.log_sigmoid(-gate) + jax.nn.log_sigmoid(sign * general),
            jax.nn.log_sigmoid(gate) + jax.nn.log_sigmoid(sign * own),
        )

    return log_mixture(1.0) - log_mixture(-1.0)


def head_logits(head: Head, features: Array) -> Array:
    """Returns calibrated log-odds of being unsafe, `[..., N]`, of features `[..., N, M]`."""
    return head.slope * _score(head, features) + head.offset


def _score(head: Head, features: Array) -> Array:
    features = jnp.asarray(features, head.linear.dtype)
    shape = (1,) * (features.ndim - 1) + head.mean.shape
    return ((features - head.mean.reshape(shape)) * head.scale.reshape(shape)) @ head.linear + head.bias


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    l2: float = 0.1,
    num_steps: int = 1000,
) -> Head:
    """Fits a head by weighted logistic regression; the calibration is left at the identity.

    Minimises `sum_i w_i CE_i / sum_i w_i + l2 / 2 |linear|^2 / M` over standardised features divided by `sqrt(M)`: the
    penalty means the same whatever the number of features.

    Args:
      features: `[N, M]`.
      labels: `[N]` in [0, 1], 1 is unsafe; fractions are soft labels.
      weights: `[N]`, not negative; default all one.
      l2: weight of the penalty, above 0.
      num_steps: most steps of L-BFGS; fewer when they no longer move.

    Returns:
      The head.

    Raises:
      ValueError: shapes that do not fit, features that are not finite, labels outside [0, 1] or all alike, weights that
        are negative or all zero, `l2` <= 0.
    """
    x = np.asarray(features, np.float64)
    y = np.asarray(labels, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or w.shape != y.shape:
        raise ValueError(f"features {x.shape}, labels {y.shape}, weights {w.shape}: expected [N, M], [N], [N].")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"features[{int(np.argwhere(~np.isfinite(x))[0, 0])}] is not finite.")
    if not len(y) or not np.all((y >= 0) & (y <= 1)) or np.ptp(y) == 0:
        raise ValueError("labels must lie in [0, 1] and not be all alike.")
    if not np.all((w >= 0) & (w < np.inf)) or w.sum() == 0:
        raise ValueError("weights must be finite, not negative, and not all zero.")
    if l2 <= 0:
        raise ValueError(f"l2={l2}: expected above 0.")
    num_features = x.shape[1]
    mean = np.average(x, axis=0, weights=w)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    # A feature that varies by rounding alone is not divided by it: elsewhere it would decide the verdict.
    varies = np.ptp(x, axis=0) > 2e-6 * np.maximum(np.abs(x).max(axis=0), 1e-2)
    scale = 1 / np.where(varies, std, 1.0) / np.sqrt(num_features)
    solution = _minimise((x - mean) * scale, y, w / w.sum(), penalty=l2 / num_features, num_steps=num_steps)
    return Head(
        mean=jnp.asarray(mean, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
        linear=jnp.asarray(solution[:-1], jnp.float32),
        bias=jnp.asarray(solution[-1], jnp.float32),
        slope=jnp.ones((), jnp.float32),
        offset=jnp.zeros((), jnp.float32),
    )


def _minimise(x: np.ndarray, y: np.ndarray, w: np.ndarray, *, penalty: float, num_steps: int) -> np.ndarray:
    """Minimises the weighted cross-entropy of a linear map with an unpenalised bias by L-BFGS; returns `[M + 1]`."""

    def objective(solution: np.ndarray) -> tuple[float, np.ndarray]:
        linear, bias = solution[:-1], solution[-1]
        logits = x @ linear + bias
        value = w @ (np.logaddexp(0, logits) - y * logits) + 0.5 * penalty * linear @ linear
        residual = w * (scipy.special.expit(logits) - y)
        return float(value), np.append(residual @ x + penalty * linear, residual.sum())

    options = {"maxiter": num_steps, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-9}
    found = scipy.optimize.minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=options)
    return found.x


def calibrate_head(head: Head, *, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Head:
    """Fits slope and offset on scores of examples that the scoring head had not seen (Platt scaling).

    Args:
      head: the head; its own slope and offset are replaced.
      scores: `[N]` uncalibrated log-odds, for instance from cross-validation.
      labels: `[N]` in [0, 1].
      weights: `[N]`, not negative; default all one.

    Returns:
      The head with slope (at least 0.05: the order of the scores is never turned round) and offset.
    """
    score, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    weight = weight / weight.sum()
    slope, offset = _minimise(score[:, None], y, weight, penalty=1e-6, num_steps=200)
    if slope < 0.05:
        rate = np.clip(weight @ y, 1e-3, 1 - 1e-3)
        slope, offset = 0.05, np.log(rate / (1 - rate)) - 0.05 * weight @ score
    return head.replace(slope=jnp.float32(slope), offset=jnp.float32(offset))  # type: ignore[attr-defined]
