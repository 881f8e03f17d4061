"""Widths on disk: what was found is what the next run begins with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.control.widths_file import load_widths, save_widths
from lightning_intune.errors import ConfigError


@given(widths=st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 64), max_size=5))
@settings(max_examples=40)
def test_what_was_saved_is_loaded_stage_by_stage_in_order(widths, tmp_path_factory):
    path = tmp_path_factory.mktemp("widths") / "run" / "intune_widths.yaml"
    save_widths(path, widths)
    assert list(load_widths(path).items()) == list(widths.items())


@pytest.mark.parametrize("text", ["decode: four", "decode: 4.5", "decode: true", "- decode", "7", "decode: [", "3: 4"])
def test_a_file_that_holds_no_widths_says_what_it_should_hold(text, tmp_path):
    path = tmp_path / "widths.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="warm_start"):
        load_widths(path)


def test_a_missing_file_is_a_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"intune_widths\.yaml"):
        load_widths(tmp_path / "none.yaml")
