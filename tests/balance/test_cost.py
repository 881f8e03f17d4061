"""The cost model: fits, outliers, bad input, state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.balance import CostModel
from lightning_intune.errors import ConfigError


def told(model: CostModel, *, outliers: float, noise: float, steps: int = 300, seed: int = 0) -> CostModel:
    """Steps of 0.01 s + 2e-5 s per L + 3e-8 s per L**2, some of them ten times as long."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        lengths = rng.lognormal(4, 1, 32).astype(int)
        step_s = 0.01 + 2e-5 * lengths.sum() + 3e-8 * (lengths**2).sum()
        model.observe(lengths, step_s * (1 + noise * rng.standard_normal()) * (10 if rng.random() < outliers else 1))
    return model


def test_clean_steps_give_the_coefficients_back() -> None:
    model = told(CostModel(), outliers=0.0, noise=0.0)
    assert model.coefficients == pytest.approx((0.01, 2e-5, 3e-8, 1.0), rel=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_outliers_do_not_move_the_fit(seed: int) -> None:
    """One step in ten takes ten times as long; least squares would be off by 90 %."""
    model = told(CostModel(), outliers=0.1, noise=0.01, seed=seed)
    lengths = [50, 100, 500]
    expected = 2e-5 * np.array(lengths) + 3e-8 * np.square(lengths)
    assert np.abs(model(lengths) / expected - 1).max() < 0.15


def test_coefficients_are_never_negative() -> None:
    """Steps that get shorter the longer the samples are: no such model, so costs stay as they were or at 0 and more."""
    model = CostModel()
    for length in range(1, 200):
        model.observe([length], 1.0 / length)
    assert min(model.coefficients) >= 0
    assert model([10.0])[0] > 0


def test_a_function_is_fitted_in_scale() -> None:
    model = CostModel(function=lambda lengths: lengths**1.5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 99, 8)
        model.observe(lengths, 0.5 + 0.25 * (lengths**1.5).sum())
    assert model([4.0])[0] == pytest.approx(0.25 * 8.0)
    assert model.fixed_s == pytest.approx(0.5)


def test_a_restored_model_goes_on_as_it_would_have() -> None:
    model = told(CostModel(), outliers=0.1, noise=0.02, steps=77)
    again = CostModel()
    again.load_state_dict(model.state_dict())
    assert (
        told(again, outliers=0.1, noise=0.02, seed=1).state_dict()
        == told(model, outliers=0.1, noise=0.02, seed=1).state_dict()
    )


def test_padding_costs_as_the_longest_does() -> None:
    model = CostModel(linear=0.0, quadratic=1.0, padded=True)
    assert model.batch_cost([3, 1, 2]) == 27.0  # 3 samples of 3**2
    assert model.batch_cost([]) == 0.0
    assert CostModel(linear=2.0, quadratic=1.0).batch_cost([3, 1]) == 2 * 4 + 10


def test_steps_that_were_not_measured_count_for_nothing() -> None:
    model = CostModel(min_steps=4)
    for step_s in (0.0, -1.0, float("nan"), float("inf")) * 4:
        model.observe([1, 2], step_s)
    assert model.coefficients == (0.0, 1.0, 0.0, 1.0)
    for _ in range(9):
        model.observe([5], 1.0)  # nothing can be told apart; a cost above zero stays
    assert model([5.0])[0] > 0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_lengths_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="sample 1 has cost"):
        CostModel()([1.0, bad])
    with pytest.raises(ValueError, match="sample 1 has cost"):
        CostModel(function=lambda _: np.array([1.0, bad]))([1.0, 2.0])


@pytest.mark.parametrize(
    "arguments", [{"linear": -1.0}, {"linear": 0.0}, {"quadratic": float("nan")}, {"min_steps": 2}, {"window": 8}]
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"CostModel: .*Set|Both must"):
        CostModel(**arguments)  # type: ignore[arg-type]
