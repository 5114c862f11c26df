import pytest
import torch

from guidon.core.errors import InputError
from guidon.training.log import Log, draw_curves, read_rows


def number(value):
    return torch.tensor(float(value))


def test_a_row_holds_means_of_what_was_said(tmp_path, capsys):
    log = Log(tmp_path / "log.csv")
    log.add({"loss": number(1), "mse_low": number("nan")})
    log.add({"loss": number(3), "mse_low": number(5), "mse_high": number("nan")})
    log.note({"joint": 0.5})
    log.write(2, 10, 1.0)
    (row,) = read_rows(tmp_path / "log.csv")
    told = {"step": "2", "seconds": "0", "lr_factor": "1", "loss": "2", "mse_low": "5", "skipped": "0", "joint": "0.5"}
    assert row == told
    assert "step 2/10 0 s loss 2 mse_low 5" in capsys.readouterr().err


def test_a_value_that_is_infinite_is_said_to_be_infinite(tmp_path):
    log = Log(tmp_path / "log.csv")
    log.add({"loss": number(1), "missed_low": number("inf")})
    log.write(1, 10, 1.0)
    (row,) = read_rows(tmp_path / "log.csv")
    assert row["missed_low"] == "inf"


def test_a_sitting_goes_on_after_its_rows(tmp_path):
    log = Log(tmp_path / "log.csv")
    for step in (2, 4):
        log.add({"loss": number(step)})
        log.write(step, 10, 1.0)
    (tmp_path / "log.csv").write_text("damaged")
    again = Log(tmp_path / "log.csv", 100.0, log.rows)
    assert 100 <= again.seconds < 101
    again.add({"loss": number(60)})
    again.write(6, 10, 0.5)
    rows = read_rows(tmp_path / "log.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [("2", "2"), ("4", "4"), ("6", "60")]


def test_skipped_steps_are_counted_and_do_not_enter_means(tmp_path, capsys):
    log = Log(tmp_path / "log.csv")
    log.skip(1, 10)
    log.write(1, 10, 1.0)
    log.add({"loss": number(2)})
    log.skip(3, 10)
    log.skip(4, 10)
    log.write(4, 10, 1.0)
    rows = read_rows(tmp_path / "log.csv")
    assert [(row["skipped"], row["loss"]) for row in rows] == [("1", ""), ("2", "2")]
    assert capsys.readouterr().err.splitlines()[0] == "step 1/10 skipped: its loss or gradient is NaN or infinite"


@pytest.mark.parametrize(
    "damaged",
    [
        b"step,loss\n1,0.5\nx,0.5\n", b"step,loss\n1,0.5,7\n", b"step,loss\n1,0.5q\n", b"step,loss\n1,\xff\n",
        b"loss\n1\n", b"step\n1\n\"" + b"0" * 200_000, b"step\n\0\n",
        b"step\n" + b"9" * 5000,
    ],
)  # fmt: skip
def test_a_damaged_log_is_refused_in_one_line(tmp_path, damaged):
    (tmp_path / "log.csv").write_bytes(damaged)
    with pytest.raises(InputError, match=r"log\.csv cannot be read as the log of a run") as error:
        read_rows(tmp_path / "log.csv")
    assert "\n" not in str(error.value)


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    log = Log(tmp_path / "log.csv")
    log.add({"loss": number("nan")})
    with pytest.raises(InputError, match=r"became nan by step 1: lower optimiser\.lr"):
        log.write(1, 10, 1.0)


@pytest.mark.usefixtures("pictures")
def test_curves_are_drawn_with_gaps_and_without_rows(tmp_path):
    rows = [{"step": "2", "loss": "0.5"}, {"step": "4", "loss": "0.25", "joint": "0.5"}]
    assert draw_curves(rows, tmp_path / "curve.png").stat().st_size > 1000
    assert draw_curves([], tmp_path / "empty.png").stat().st_size > 0


@pytest.mark.usefixtures("pictures")
def test_a_name_is_drawn_as_text_even_if_it_looks_like_a_formula(tmp_path):
    assert draw_curves([{"step": "2", r"$\no$": "0.5"}], tmp_path / "curve.png").stat().st_size > 1000
