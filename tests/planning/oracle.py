"""iCEM written a second time, in NumPy with loops and lists, from the description of the algorithm."""

import numpy as np


class Oracle:
    """One planner of one episode; `draw(step, iteration, n, mean, std)` gives the candidates before clipping."""

    def __init__(self, *, low, high, horizon, iterations, samples, elites, std, alpha, gamma, xi, **choices):
        self.low, self.high = np.asarray(low, float), np.asarray(high, float)
        self.horizon, self.iterations, self.samples = horizon, iterations, samples
        self.k = max(2, min(elites, samples // 2))
        self.std0, self.alpha, self.gamma, self.xi = std, alpha, gamma, xi
        self.choices = {"keep": True, "shift": True, "mean": True, "execute": "best", **choices}
        self.mu = np.tile((self.low + self.high) / 2, (horizon, 1))
        self.memory = []  # elites of the last step, best first
        self.sizes = []  # how many sequences were simulated, by iteration
        self.simulated = []

    def step(self, draw, fresh, cost):
        """`fresh(n)` draws sequences whose last actions complete the shifted elites; `cost` maps [N, T, A] to [N]."""
        sigma = np.tile(self.std0 * (self.high - self.low) / 2, (self.horizon, 1))
        mu, n, elites = self.mu, self.samples, []
        number = int(self.xi * self.k)
        self.sizes, self.simulated = [], []
        for i in range(self.iterations):
            if i > 0:
                n = max(2 * self.k, int(n / self.gamma))
            batch = [np.clip(x, self.low, self.high) for x in draw(i, n, mu, sigma)]
            if self.choices["mean"] and i == self.iterations - 1:
                batch[0] = mu.copy()
            if self.choices["shift"] and i == 0 and self.memory:
                for old, new in zip(self.memory[:number], fresh(number, mu, sigma), strict=True):
                    batch.append(np.concatenate([old[1:], np.clip(new, self.low, self.high)[-1:]]))
            values = cost(np.stack(batch))
            self.sizes.append(len(batch))
            self.simulated.append(np.stack(batch))
            pool = list(zip(values, batch, strict=True))
            if self.choices["keep"] and i > 0:
                pool += elites[:number]
            bad = [pair for pair in pool if not np.isfinite(pair[0])]
            good = sorted((pair for pair in pool if np.isfinite(pair[0])), key=lambda pair: pair[0])
            elites = (good + bad)[: self.k]
            counted = np.stack([x for value, x in elites if np.isfinite(value)] or [mu])
            if any(np.isfinite(value) for value, _ in elites):
                mu = (1 - self.alpha) * counted.mean(0) + self.alpha * mu
                sigma = (1 - self.alpha) * counted.std(0) + self.alpha * sigma
        self.memory = [x for _, x in elites]
        best_value, best = elites[0]
        action = best[0] if self.choices["execute"] == "best" else mu[0]
        self.mu = np.concatenate([mu[1:], mu[-1:]])
        return action, best_value, mu, sigma
