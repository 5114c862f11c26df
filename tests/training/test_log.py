import pytest
import torch

from guidon.core.errors import InputError
from guidon.training.log import Log, draw_curves, read_rows


def number(value):
    return torch.tensor(float(value))


def test_a_row_holds_means_of_what_was_said(tmp_path, capsys):
    log = Log(tmp_path / "log.csv", 0, 0.0)
    log.add({"loss": number(1), "mse_low": number("nan")})
    log.add({"loss": number(3), "mse_low": number(5), "mse_high": number("nan")})
    log.note({"joint": 0.5})
    log.write(2, 10, 1.0)
    (row,) = read_rows(tmp_path / "log.csv")
    assert row == {"step": "2", "seconds": "0", "lr_factor": "1", "loss": "2", "mse_low": "5", "joint": "0.5"}
    assert "step 2/10 0 s loss 2 mse_low 5" in capsys.readouterr().err


def test_a_sitting_goes_on_after_its_checkpoint(tmp_path):
    log = Log(tmp_path / "log.csv", 0, 0.0)
    for step in (2, 4, 6):
        log.add({"loss": number(step)})
        log.write(step, 10, 1.0)
    again = Log(tmp_path / "log.csv", 4, 100.0)
    assert 100 <= again.seconds < 101
    again.add({"loss": number(60)})
    again.write(6, 10, 0.5)
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "log.csv")] == [
        ("2", "2"),
        ("4", "4"),
        ("6", "60"),
    ]


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    log = Log(tmp_path / "log.csv", 0, 0.0)
    log.add({"loss": number("nan")})
    with pytest.raises(InputError, match=r"became nan by step 1: lower optimiser\.lr"):
        log.write(1, 10, 1.0)


def test_curves_are_drawn_with_gaps_and_without_rows(tmp_path):
    (tmp_path / "log.csv").write_text("step,seconds,loss,joint\n2,1,0.5,\n4,2,0.25,0.5\n")
    assert draw_curves(tmp_path / "log.csv", tmp_path / "curve.png").stat().st_size > 1000
    assert draw_curves(tmp_path / "none.csv", tmp_path / "empty.png").stat().st_size > 0
