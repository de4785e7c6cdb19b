"""The ledger's parts against a slow count, and its summary against numpy's covariance."""

from __future__ import annotations

import numpy as np
import pytest

from mgkeras.probes.ledger import PARTS, entries, ledger_summary, parts_of
from mgkeras.scores.within import draws_within

SIDE, GRID = 24, 6


def scene():
    mask, body = np.zeros((SIDE,) * 3, bool), np.zeros((SIDE,) * 3, bool)
    mask[9:13, 10:12, 10:12] = True
    body[4:, 2:20, 2:20] = True
    return mask, body


def test_each_cell_is_in_one_part():
    mask, body = scene()
    found = parts_of(mask, body, 2.5, GRID)
    inside = np.argwhere(mask)
    for index in np.ndindex(found.shape):
        block = tuple(slice(4 * i, 4 * i + 4) for i in index)
        corners = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in block], indexing="ij"), -1).reshape(-1, 3)
        near = min(np.linalg.norm(inside - corner, axis=1).min() for corner in corners) * 2.5 <= 10
        expected = "tumour" if mask[block].any() else "outside" if not body[block].any() else "ring" if near else "body"
        assert PARTS[found[index]] == expected, index
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert PARTS.index("outside") not in parts_of(mask, None, 2.5, GRID)


def test_entries_add_up_to_the_maps_mean():
    evidence = np.random.default_rng(0).standard_normal((GRID,) * 3)
    parts = parts_of(*scene(), 2.5, GRID)
    found = entries(evidence, parts)
    assert sum(found[part] for part in PARTS) == pytest.approx(evidence.mean())
    assert sum(found[f"weight_{part}"] for part in PARTS) == pytest.approx(np.abs(evidence).mean())
    for at, part in enumerate(PARTS):
        assert found[part] == pytest.approx(evidence[parts == at].sum() / GRID**3)
        assert found[f"cells_{part}"] == (parts == at).sum()


def rows_of(brought, folds):
    return [
        {
            "subject": f"s{at}",
            "fold": fold,
            "label": 0,
            "log_odds": 3.0 * fold + sum(evidence),
            "constant": 3.0 * fold,
            **dict(zip(PARTS, evidence, strict=True)),
            **{f"cells_{part}": 10 * (k + 1) for k, part in enumerate(PARTS)},
            **{f"weight_{part}": abs(value) for part, value in zip(PARTS, evidence, strict=True)},
        }
        for at, (evidence, fold) in enumerate(zip(brought, folds, strict=True))
    ]


def slow_shares(brought, folds):
    total = brought.sum(1)
    top, below = np.zeros(4), 0.0
    for fold in np.unique(folds):
        own = folds == fold
        for part in range(4):
            top[part] += ((brought[own, part] - brought[own, part].mean()) * (total[own] - total[own].mean())).sum()
        below += ((total[own] - total[own].mean()) ** 2).sum()
    return top / below


def test_shares_of_the_variance_are_covariances_within_folds_and_sum_to_one():
    rng = np.random.default_rng(2)
    brought, folds = rng.standard_normal((30, 4)) * [3, 1, 0.5, 0.1], np.arange(30) % 3
    brought[folds == 1] += 50  # another model's offset is no variance between patients
    found = ledger_summary(rows_of(brought, folds), samples=40, seed=1)
    assert [part["part"] for part in found["parts"]] == list(PARTS) and found["subjects"] == 30
    shares = [part["variance"]["value"] for part in found["parts"]]
    assert shares == pytest.approx(slow_shares(brought, folds)) and sum(shares) == pytest.approx(1)
    counts = np.zeros((40, 30), int)
    for part, places, block in draws_within(folds, samples=40, seed=1):
        counts[part, places] = block
    draws = [np.repeat(np.arange(30), count) for count in counts]
    drawn = [slow_shares(brought[rows], folds[rows]) for rows in draws]
    for at, part in enumerate(found["parts"]):
        low, high = np.quantile([draw[at] for draw in drawn], (0.025, 0.975))
        assert (part["variance"]["low"], part["variance"]["high"]) == pytest.approx((low, high))
        centred = np.concatenate([brought[folds == k, at] - brought[folds == k, at].mean() for k in range(3)])
        assert part["sd"] == pytest.approx(np.sqrt((centred**2).sum() / 27))
        assert part["cells"]["mean"] == pytest.approx((at + 1) / 10)
    evidence = np.abs(brought) / np.abs(brought).sum(1, keepdims=True)
    assert [part["evidence"]["mean"] for part in found["parts"]] == pytest.approx(evidence.mean(0).tolist())
    assert found["constant"] == {"mean": 3, "sd": 3, "folds": 3}


def test_no_rows_and_no_variance_are_undefined():
    assert ledger_summary([]) is None
    found = ledger_summary(rows_of(np.zeros((4, 4)), [0, 0, 1, 1]), samples=20)
    for part in found["parts"]:
        assert part["variance"] == {"value": None, "low": None, "high": None} and part["sd"] == 0
        assert part["evidence"]["mean"] is None
    single = ledger_summary(rows_of(np.ones((1, 4)), [0]), samples=20)
    assert single["parts"][0]["sd"] is None
