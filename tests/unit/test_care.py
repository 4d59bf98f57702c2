"""Storage parameters of the big tables."""

from __future__ import annotations

from stackserver import care


def test_a_table_without_parameters_gets_all_of_them() -> None:
    assert care.missing_parameters(None, care.PARAMETERS) == care.PARAMETERS


def test_a_table_that_has_them_is_left_alone() -> None:
    present = [f"{name}={value}" for name, value in care.PARAMETERS.items()]
    assert care.missing_parameters(present, care.PARAMETERS) == {}


def test_another_value_is_set_right_and_others_parameters_stay() -> None:
    present = ["fillfactor=50", "autovacuum_enabled=true"]
    missing = care.missing_parameters(present, {"fillfactor": 90})
    assert missing == {"fillfactor": 90}
