"""The probes on models whose answers are known, and on a small run."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from mgkeras.probes import scores as probes
from mgkeras.probes.figures import probe_figure
from mgkeras.probes.ledger import PARTS
from mgkeras.probes.rest_tables import rest_tables
from mgkeras.probes.tables import causal_table, probe_rows, randomised_table, trap_table
from mgkeras.settings import GuidanceSettings

SIDE = 12
ALL = {n: np.ones((n, n, n), bool) for n in (2, 3)}


def sees(where, weight=1.0):
    """A model whose evidence is the weighted sum of some voxels less 1."""

    def forward(volumes):
        return {"evidence": weight * volumes[:, where[0], where[1], where[2], 0].sum(axis=(1, 2, 3)) - 1.0}

    return forward


# --- occlusion


def test_an_occlusion_map_is_high_where_the_model_looks_and_zero_elsewhere():
    block = (slice(4, 8), slice(0, 4), slice(8, 12))
    volume, blurred = np.ones((SIDE,) * 3, np.float32), np.zeros((SIDE,) * 3, np.float32)
    effect = probes.occlusion_map(sees(block), volume, blurred, ALL[3], batch=5)
    expected = np.zeros((3, 3, 3))
    expected[1, 0, 2] = 64
    assert np.array_equal(effect, expected)


def test_an_occlusion_map_equals_one_made_block_by_block():
    rng = np.random.default_rng(0)
    volume, blurred, weight = (rng.standard_normal((SIDE,) * 3).astype(np.float32) for _ in range(3))

    def forward(volumes):
        return {"evidence": np.tanh((volumes[..., 0] * weight).sum(axis=(1, 2, 3)) / 30)}

    effect = probes.occlusion_map(forward, volume, blurred, ALL[2])
    whole = forward(volume[None, ..., None])["evidence"][0]
    for x in range(2):
        for y in range(2):
            for z in range(2):
                changed = volume.copy()
                for i in range(6):
                    for j in range(6):
                        for k in range(6):
                            changed[6 * x + i, 6 * y + j, 6 * z + k] = blurred[6 * x + i, 6 * y + j, 6 * z + k]
                fall = whole - forward(changed[None, ..., None])["evidence"][0]
                assert effect[x, y, z] == pytest.approx(fall if whole >= 0 else -fall, abs=1e-6)


def test_evidence_against_class_1_counts_for_class_0():
    """Where the model says class 0, taking away what speaks against class 1 makes the effect positive."""
    block = (slice(0, 4), slice(0, 4), slice(0, 4))
    volume, blurred = np.ones((SIDE,) * 3, np.float32), np.zeros((SIDE,) * 3, np.float32)
    assert probes.occlusion_map(sees(block, weight=-1.0), volume, blurred, ALL[3])[0, 0, 0] == 64


def test_occlusion_scores_of_a_map_that_agrees_and_of_none():
    mask = np.zeros((SIDE,) * 3, bool)
    mask[1, 1, 1] = True
    cam = np.random.default_rng(1).standard_normal((6, 6, 6))
    agreeing = cam.reshape(3, 2, 3, 2, 3, 2).mean(axis=(1, 3, 5))
    found = probes.occlusion_scores(agreeing, ALL[3], cam, mask)
    assert found["rank_occlusion"] == pytest.approx(1)
    assert found["occlusion_mass"] == pytest.approx(max(agreeing[0, 0, 0], 0) / np.maximum(agreeing, 0).sum())
    assert found["occlusion_chance"] == pytest.approx(1 / 27)
    nothing = probes.occlusion_scores(np.zeros((3, 3, 3)), ALL[3], cam, np.zeros_like(mask))
    assert set(nothing.values()) == {None}
    air = probes.occlusion_scores(np.zeros((3, 3, 3)), ~ALL[3], cam, mask)
    assert set(air.values()) == {None}


def test_only_the_blocks_that_are_asked_are_tried_and_compared():
    volume, blurred = np.ones((SIDE,) * 3, np.float32), np.zeros((SIDE,) * 3, np.float32)
    asked = np.zeros((3, 3, 3), bool)
    asked[0] = True
    everywhere = (slice(None),) * 3
    effect = probes.occlusion_map(sees(everywhere), volume, blurred, asked)
    assert np.array_equal(effect, np.where(asked, 64, 0))
    cam, mask = np.arange(27.0).reshape(3, 3, 3), np.ones((SIDE,) * 3, bool)
    ranked = np.where(asked, cam, 100 - cam)  # agrees where asked, disagrees elsewhere
    assert probes.occlusion_scores(ranked, asked, cam, mask)["rank_occlusion"] == pytest.approx(1)
    assert probes.occlusion_scores(ranked, asked, cam, mask)["occlusion_chance"] == 1


def test_rank_correlation_is_scipys_and_undefined_for_a_constant():
    a, b = np.random.default_rng(2).standard_normal((2, 3, 3, 3))
    assert probes.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert probes.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert probes.rank_correlation(a, np.full_like(a, 3)) is None


@pytest.mark.parametrize(("cells", "expected"), [(6, 6), (16, 4), (12, 6), (7, 1), (3, 3), (8, 4)])
def test_the_occlusion_grid_divides_the_maps(cells, expected):
    assert probes.occlusion_grid(cells) == expected


def test_dilations_hold_the_one_of_training():
    assert GuidanceSettings().dilation_mm in probes.DILATIONS_MM and sorted(probes.DILATIONS_MM)[0] == 0


# --- the summary

ABOUT = {"dilations": [{"mm": 0.0}, {"mm": 4.0}], "layers": ["logits", "features"], "boxes": [], "grid": 3}


def rows(n=8, **changed):
    """Subjects whose model decides from outside the tumour: blurring the outside flips it, blurring the inside not."""
    labels = [i % 2 for i in range(n)]
    found = []
    for label in labels:
        p = 0.9 if label else 0.1
        found.append(
            {
                "label": label,
                "probability": p,
                "p_outside_blurred_0mm": 1 - p,
                "p_inside_blurred_0mm": p,
                "p_outside_blurred_4mm": 0.5,
                "p_inside_blurred_4mm": p,
                "rank_occlusion": 0.5,
                "occlusion_mass": 0.2,
                "occlusion_chance": 0.1,
                "rank_random_logits": 0.25,
                "rank_random_features": "",
                "trap_spot": label,
                "p_with_spot": 0.9,
                "p_without_spot": 0.1,
                "trap_noise": 1 - label,
                "p_with_noise": p,
                "p_without_noise": p,
            }
            | changed
        )
    return found


def test_a_summary_by_hand():
    untrained = [
        {"subject": "a", "fold": 0, "label": 1, "probability": 0.5, "mass_in_mask": 0.3, "mass_chance": 0.1},
        {"subject": "b", "fold": 0, "label": 0, "probability": 0.5, "mass_in_mask": "", "mass_chance": 0.1},
    ]
    found = probes.summarise_probes(ABOUT, rows(), untrained, samples=50)
    first, second = found["causal"]
    assert first["auc_outside_blurred"]["value"] == 0 and first["auc_inside_blurred"]["value"] == 1
    assert first["change_outside_blurred"]["mean"] == pytest.approx(0.8)
    assert first["change_inside_blurred"] == {"mean": 0, "low": 0, "high": 0, "subjects": 8}
    assert second["auc_outside_blurred"]["value"] == 0.5 and second["dilation_mm"] == 4.0
    assert found["occlusion"]["rank_correlation"]["mean"] == 0.5 and found["occlusion"]["grid"] == 3
    logits, features = found["randomised"]
    assert logits["rank_correlation"]["mean"] == 0.25 and features["rank_correlation"]["mean"] is None
    assert found["random_network"]["attention"]["mass_in_mask"]["undefined"] == 1
    assert found["random_network"]["above_chance"]["mean"] == pytest.approx(0.2)
    spot, noise = found["traps"]
    assert (spot["trap"], spot["subjects"], spot["with_trap"]) == ("spot", 8, 4) and spot["auc_as_is"]["value"] == 1
    assert spot["auc_removed"]["value"] == spot["auc_added"]["value"] == 0.5
    assert spot["change_removed"]["mean"] == pytest.approx(0.8) and spot["change_removed"]["subjects"] == 4
    assert noise["trap"] == "noise" and noise["auc_removed"]["value"] == 1 and noise["change_added"]["mean"] == 0


def asked_rows(n=16):
    """Those of rows, of two folds, asked everything: the prediction follows the breast."""
    found = []
    for at, row in enumerate(rows(n)):
        other = (at // 2) % 2
        p = 0.8 if other else 0.3
        found.append(
            row
            | {
                "fold": at // (n // 2),
                "partner": "x",
                "partner_label": other,
                "p_transplant": p,
                "p_transplant_soft": p,
                "p_inside_filled": 0.5,
                "p_hole": row["probability"],
                "mass_chance_body": 0.1,
                "mass_of_t1": "" if at else 0.2,
                "kept_ml_4mm": 30.0,
            }
        )
    return found


def ledger_rows(n=16):
    return [
        {
            "subject": f"s{at}",
            "fold": at // 8,
            "label": at % 2,
            "log_odds": 2.0 * (at % 2),
            "constant": 0.0,
            **{part: 0.0 for part in PARTS},
            "ring": 2.0 * (at % 2),
            **{f"cells_{part}": 5 for part in PARTS},
            **{f"weight_{part}": 1.0 for part in PARTS},
        }
        for at in range(n)
    ]


def test_everything_that_was_asked_is_summarised():
    found = probes.summarise_probes({**ABOUT, "swap_trained": True}, asked_rows(), [], ledger_rows(), samples=50)
    moved = found["transplant"]
    assert moved["subjects"] == 16 and moved["swap_trained"]
    assert moved["breast"]["value"] == moved["soft_breast"]["value"] == 1 and moved["owner"]["value"] == 0.5
    assert moved["owner_less_breast"]["value"] == -0.5 and moved["same_decision"]["mean"] == 0.5
    controls = found["controls"]
    assert controls["filled"]["auc"]["value"] == 0.5 and controls["filled"]["less_whole"]["value"] == -0.5
    assert controls["hole"]["auc"]["value"] == 1 and controls["hole"]["change"]["mean"] == 0
    assert controls["mass_chance_body"]["mean"] == 0.1 and controls["mass_of_t1"]["subjects"] == 1
    assert [model["kept_ml"] and model["kept_ml"]["mean"] for model in found["causal"]] == [None, 30]
    ring = found["ledger"]["parts"][1]
    assert ring["variance"] == {"value": 1, "low": 1, "high": 1} and ring["cells"]["mean"] == 0.25


def test_probes_of_before_have_none_of_it():
    found = probes.summarise_probes(ABOUT, rows(), [], samples=50)
    assert found["transplant"] is found["controls"] is found["ledger"] is None


def test_undefined_values_are_left_out_and_never_nan():
    empty = rows(4, **{name: "" for name in rows(1)[0] if name not in ("label", "probability")})
    found = probes.summarise_probes(ABOUT, empty, [], samples=50)
    assert found["causal"][0]["auc_outside_blurred"] == {"value": None, "low": None, "high": None, "subjects": 0}
    assert found["traps"] == [] and found["random_network"]["attention"] == {}
    one_class = probes.summarise_probes(ABOUT, rows(1), [], samples=50)
    assert one_class["causal"][0]["auc_inside_blurred"]["value"] is None


def test_tables_rows_and_panels_of_what_was_asked(tmp_path):
    site = {
        "columns": [
            {
                "column": "site",
                "groups": 2,
                "predicted_auc": {"value": 0.9, "low": 0.8, "high": 1.0},
                "within": [{"group": "A", "subjects": 8, "auc": {"value": 0.6, "low": None, "high": None}}],
            }
        ]
    }
    found = probes.summarise_probes({**ABOUT, "swap_trained": True}, asked_rows(), [], ledger_rows(), samples=50)
    model = {
        "name": "guided",
        "pooled": {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}},
        "robustness": None,
        "probes": found | {"site": site},
    }
    before = model | {"name": "older", "probes": probes.summarise_probes(ABOUT, rows(), [], samples=50)}
    results = {"models": [model, before, {"name": "majority class"}]}
    tables = {title: shown for title, shown, note in rest_tables(results) if note}
    assert [len(shown) for shown in tables.values()] == [1, 4, 1, 1]
    assert tables["Tumours in another breast"][0]["owner - breast"].startswith("-0.50 (")
    assert tables["What each part brings to the log-odds"][1]["share of variance (95 %)"] == "1.00 (1.00 to 1.00)"
    assert tables["Controls"][0]["AUC hole elsewhere"].startswith("1.00")
    assert tables["The site in the features"][0]["AUC within it (95 %)"] == "0.60"
    assert rest_tables({"models": [before]}) == []
    long = {(row["part"], row["group"], row["score"]): row["value"] for row in probe_rows(model)}
    assert long["transplant", "all", "owner_less_breast"] == -0.5 and long["ledger", "ring", "variance"] == 1
    assert long["ledger", "ring", "brought_sd"] > 0 and long["controls", "filled", "less_whole"] == -0.5
    assert long["controls", "all", "mass_chance_body"] == 0.1 and long["causal", "4.0 mm", "kept_ml"] == 30
    assert long["site", "site", "predicted_auc"] == 0.9 and long["site", "site A", "auc"] == 0.6
    picture, plainer = (
        imread(probe_figure(tmp_path / f"{len(models)}.png", {"models": models}))
        for models in ([model, before], [before])
    )
    assert picture.shape[0] > plainer.shape[0], "more panels"


def test_tables_and_picture_of_a_summary(tmp_path):
    model = {
        "name": "guided",
        "pooled": {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}},
        "probes": probes.summarise_probes(ABOUT, rows(), [], samples=50),
        "robustness": None,
    }
    results = {"models": [model, {"name": "majority class"}]}
    assert [row["dilation (mm)"] for row in causal_table(results)] == ["0.0", "4.0"]
    assert causal_table(results)[0]["AUC outside only (95 %)"].startswith("1.00")
    assert [row["guided"][:4] for row in randomised_table(results)] == ["0.25", "-"]
    assert [row["trap"] for row in trap_table(results)] == ["spot", "noise"]
    assert trap_table(results)[0]["AUC removed"].startswith("0.50") and trap_table(results)[0]["with it"] == "4 of 8"
    long = {(row["part"], row["group"], row["score"]): row["value"] for row in probe_rows(model)}
    assert long["causal", "4.0 mm", "auc_outside_blurred"] == 0.5
    assert long["trap", "spot", "auc_removed"] == 0.5
    assert probe_figure(tmp_path / "probes.png", results).stat().st_size > 5000
    assert probe_figure(tmp_path / "none.png", {"models": [{"name": "majority class"}]}) is None
