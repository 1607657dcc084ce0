import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation.tables import markdown, mean_and_std, recovered_share, summarise


def record(tier, seed, object_seed, failures=None, **iou):
    metrics = {mode: {"iou": value, "iou_camera": value, "mask_iou": value} for mode, value in iou.items()}
    return {"tier": tier, "seed": seed, "object": object_seed, "metrics": metrics, "failures": failures or {}}


def suite(blurry=0.3, fused=0.4, sharp=0.5, objects=20, spread=0.0):
    rng = np.random.default_rng(0)
    return [
        record("hard", seed, i, blurry=blurry + shift, fused=fused + shift + spread * rng.normal(), sharp=sharp + shift)
        for seed in range(3)
        for i in range(objects)
        for shift in [0.1 * rng.normal()]
    ]


def test_mean_is_over_cases_and_std_over_the_means_of_seeds():
    result = mean_and_std([(0, 0.1), (0, 0.3), (1, 0.5), (1, 0.7), (2, 0.4), (2, 0.4)])
    assert result == pytest.approx({"mean": 0.4, "std": np.std([0.2, 0.6, 0.4], ddof=1), "n": 6})


def test_one_seed_has_no_spread():
    assert mean_and_std([(4, 0.1), (4, 0.3)]) == pytest.approx({"mean": 0.2, "std": 0.0, "n": 2})


def test_recovered_share_of_equal_cases_is_exact():
    result = recovered_share(suite(), "iou")
    expected = {"share": 0.5, "share_low": 0.5, "share_high": 0.5, "gain": 0.1, "gain_low": 0.1, "gain_high": 0.1}
    assert result == pytest.approx(expected | {"n": 60})


def test_interval_holds_the_share_and_narrows_with_more_objects():
    few, many = (recovered_share(suite(objects=n, spread=0.05), "iou") for n in (10, 160))
    for result in (few, many):
        assert result["share_low"] < result["share"] < result["share_high"]
        assert result["gain_low"] < result["gain"] < result["gain_high"]
    assert many["gain_high"] - many["gain_low"] < 0.5 * (few["gain_high"] - few["gain_low"])


def test_seeds_of_one_object_are_no_new_evidence():
    one = [record("hard", 0, i, blurry=0.3, fused=0.3 + 0.01 * (i % 7), sharp=0.5) for i in range(30)]
    again = [
        record("hard", seed, r["object"], **{m: v["iou"] for m, v in r["metrics"].items()})
        for r in one
        for seed in (1, 2)
    ]
    width = [r["gain_high"] - r["gain_low"] for r in (recovered_share(one, "iou"), recovered_share(one + again, "iou"))]
    assert width[0] == pytest.approx(width[1])


def test_only_paired_cases_count():
    cases = [*suite(), record("hard", 0, 99, blurry=0.9), record("hard", 0, 98, fused=0.0, sharp=1.0)]
    assert recovered_share(cases, "iou") == recovered_share(suite(), "iou")
    assert recovered_share(cases[-2:], "iou")["n"] == 0


def test_share_is_unknown_where_blur_costs_nothing():
    result = recovered_share(suite(blurry=0.5), "iou")
    assert (result["share"], result["share_low"]) == (None, None)
    assert result["gain"] == pytest.approx(-0.1)


def test_share_of_errors_counts_what_goes_down():
    cases = [
        {"tier": "hard", "seed": 0, "object": name, "failures": {}, "metrics": values}
        for name in ("a.obj", "b.obj", "c.obj")
        for values in [{mode: {"chamfer": v} for mode, v in (("sharp", 0.1), ("blurry", 0.2), ("fused", 0.12))}]
    ]
    result = recovered_share(cases, "chamfer")
    assert (result["share"], result["share_low"], result["share_high"]) == pytest.approx((0.8, 0.8, 0.8))
    assert result["gain"] == pytest.approx(-0.08)
    assert list(summarise(cases, "nano")["recovered"]["hard"]) == ["chamfer"]


def test_interval_is_that_of_the_mean_of_independent_objects():
    """With a cost of exactly 1 per object the share is a mean, whose 95 % interval is known."""
    rng = np.random.default_rng(1)
    gains = 0.4 + 0.5 * rng.normal(size=400)
    cases = [record("hard", 0, i, blurry=0.0, fused=gain, sharp=1.0) for i, gain in enumerate(gains)]
    result = recovered_share(cases, "iou")
    half = 1.96 * gains.std() / np.sqrt(len(gains))
    assert result["share"] == pytest.approx(gains.mean())
    assert result["share_low"] == pytest.approx(gains.mean() - half, abs=0.15 * half)
    assert result["share_high"] == pytest.approx(gains.mean() + half, abs=0.15 * half)


@given(st.floats(0.01, 0.3), st.floats(-0.3, 0.3))
def test_share_does_not_change_when_all_modes_shift(cost, shift):
    first = recovered_share(suite(0.3, 0.3 + cost / 4, 0.3 + cost), "iou")
    second = recovered_share(suite(0.3 + shift, 0.3 + shift + cost / 4, 0.3 + shift + cost), "iou")
    assert first["share"] == pytest.approx(0.25)
    assert second["share"] == pytest.approx(0.25)


def test_summary_has_the_agreed_form_and_survives_json():
    cases = [record("easy", 0, 50, blurry=0.2, failures={"fused": "nothing_solid"}), *suite()]
    summary = json.loads(json.dumps(summarise(cases, "nano abc")))
    assert list(summary["tiers"]) == ["easy", "hard"]
    assert set(summary["tiers"]["hard"]["fused"]["iou"]) == {"mean", "std", "n"}
    assert summary["tiers"]["hard"]["fused"]["iou"]["n"] == 60
    assert summary["failures"] == {"easy": {"fused": {"nothing_solid": 1}}, "hard": {}}
    assert (summary["model"], summary["seeds"], summary["objects"]) == ("nano abc", [0, 1, 2], 21)


def test_markdown_has_a_row_per_mode():
    text = markdown(summarise(suite(), "nano"))
    row = next(line for line in text.splitlines() if line.startswith("| fused"))
    assert row.count("|") == markdown(summarise(suite(), "nano")).splitlines()[4].count("|")
    assert "| iou | +0.100 [+0.100, +0.100] | 50% [50%, 50%] |" in text
    assert "20 held-out objects, seeds 0, 1, 2" in text


def test_markdown_says_when_nothing_pairs():
    assert "No case has all of" in markdown(summarise([record("easy", 0, 5, blurry=0.2)], "nano"))


def test_markdown_gives_no_share_where_blur_may_cost_nothing():
    mixed = [record("hard", 0, i, blurry=0.5, fused=0.5, sharp=0.5 + (0.1 if i else -0.05)) for i in range(2)]
    assert recovered_share(mixed, "iou")["share"] == pytest.approx(0)
    assert "not known: blur may cost nothing here" in markdown(summarise(mixed, "nano"))


def test_markdown_names_what_was_left_out():
    summary = summarise(suite(), "nano") | {"left_out": {"teapot.obj": "not_watertight"}}
    assert "Left out: teapot.obj (not_watertight)." in markdown(summary)


def test_markdown_counts_cases_without_an_answer():
    failed = record("hard", 0, 77, blurry=0.2, failures={"fused": "nothing_solid", "events": "nothing_solid"})
    text = markdown(summarise([*suite(), failed], "nano"))
    assert "No answer, left out of the means: fused 1 (nothing_solid), events 1 (nothing_solid)." in text
    assert "No answer" not in markdown(summarise(suite(), "nano"))


def test_no_cases_are_refused():
    with pytest.raises(InputError):
        summarise([], "nano")
    with pytest.raises(InputError):
        mean_and_std([])
