"""Writes expected.json: small arrays, and what NumPy makes of them by the definitions, loop by loop."""
import json
import numpy as np

rng = np.random.default_rng(7)
real = np.round(rng.normal(size=(40, 6)), 4)
fake = np.round(rng.normal(size=(30, 6)) * 1.2 + 0.3, 4)
logits = rng.normal(size=(53, 5)) * 2
p = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 6)
p /= p.sum(1, keepdims=True)


def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def squared_mmd(x, y):
    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (m * n)
    return xx + yy - 2 * xy


def inception_score(p, splits=10):
    scores = []
    for s in range(splits):
        part = p[s * len(p) // splits : (s + 1) * len(p) // splits]
        marginal = part.mean(0)
        scores.append(np.exp(np.mean([np.sum(q * (np.log(q) - np.log(marginal))) for q in part])))
    return float(np.mean(scores)), float(np.std(scores))


def frechet(x, y):
    a, b = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots.sum())


def radii(points, k=3):
    return [sorted(np.linalg.norm(points - q, axis=1))[k] for q in points]


def covered(points, by):
    inside = lambda q: any(np.linalg.norm(q - c) <= r for c, r in zip(by, radii(by)))
    return float(np.mean([inside(q) for q in points]))


json.dump(
    {
        "real": real.tolist(),
        "fake": fake.tolist(),
        "probabilities": p.tolist(),
        "frechet": frechet(real, fake),
        "frechet_of_5": frechet(real, fake[:5]),
        "squared_mmd": float(squared_mmd(fake, real)),
        "mmd_blocks_of_10": [float(squared_mmd(fake[10 * i : 10 * i + 10], real[10 * i : 10 * i + 10])) for i in range(3)],
        "inception_score": inception_score(p),
        "precision": covered(fake, real),
        "recall": covered(real, fake),
    },
    open("expected.json", "w"),
)
