"""The loss picture: drawn from what was logged, with every finished run, and never a reason for a run to fail."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from nlpstack import report
from nlpstack.errors import DataError
from nlpstack.job import RunOptions
from nlpstack.pretrain import pretrain as pretrain_call
from nlpstack.report import add_loss_picture, loss_curves, loss_picture
from nlpstack.train.run import MetricsLog, RunFolder
from tests import tiny
from tests.tiny import nlpstack, pretrain, write_text

RECORDS = [
    {"step": 1, "loss": 6.2, "lr": 1e-4, "grad_norm": 1.0},
    {"step": 5, "loss": None, "lr": 2e-4},
    {"step": 5, "val": {"loss": 5.5, "perplexity": 244.7}, "samples": []},
    {"step": 10, "loss": 5.1, "lr": 0.0},
    {"step": 10, "val": {"loss": None, "perplexity": None}},
]


def write_run(folder: Path, records: list[dict], val: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "results.json").write_text(
        json.dumps({"results": [], "run": {"val": {"loss": 5.0} if val is None else val}})
    )
    return folder


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", png[16:24])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are turned into PNGs."""
    figures: list[Figure] = []
    plain = report.png
    monkeypatch.setattr(report, "png", lambda figure, **given: (figures.append(figure), plain(figure, **given))[1])
    return figures


def test_curves_hold_what_was_logged(tmp_path: Path) -> None:
    curves = loss_curves(write_run(tmp_path, RECORDS) / "metrics.jsonl")
    assert [step for step, _ in curves["train"]] == [1, 5, 10]
    assert [value for _, value in curves["train"]] == pytest.approx([6.2, math.nan, 5.1], nan_ok=True)
    assert curves["lr"] == [(1, 1e-4), (5, 2e-4), (10, 0.0)]
    assert curves["val"][0] == (5, 5.5)
    assert math.isnan(curves["val"][1][1])


def test_scores_without_a_loss_are_no_curve(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 1.0, "lr": 0.1}, {"step": 1, "val": {"entity_f1": 0.5}}]
    log = write_run(tmp_path, records, {"entity_f1": 0.5}) / "metrics.jsonl"
    assert loss_curves(log) == {"train": [(1, 1.0)], "val": [], "lr": [(1, 0.1)]}


def test_a_sample_text_may_hold_any_line_end(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for _ in range(2):
        MetricsLog(log).write({"step": 1, "val": {"loss": 2.0}, "samples": [{"text": "a\u2028b\x85c\x0bd\re\nf"}]})
    assert loss_curves(log)["val"] == [(1, 2.0), (1, 2.0)]


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"loss": 1.0}', '{"step": 2, "loss": 1.0}', '{"step": "x"}', '{"step": 2, "val": 3}']
)
def test_a_line_that_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    log = write_run(tmp_path, RECORDS) / "metrics.jsonl"
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:6: not a record of a step or a validation"):
        loss_curves(log)


def test_the_picture_shows_the_curves_and_the_last_scores(tmp_path: Path, drawn: list[Figure]) -> None:
    assert size(loss_picture(write_run(tmp_path / "my-run", RECORDS))) == (800, 500)
    losses, rates = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines.keys() == {"training", "validation"}
    assert (lines["training"][0], lines["training"][2], lines["validation"][0]) == ([1, 6.2], [10, 5.1], [5, 5.5])
    assert math.isnan(lines["training"][1][1])
    assert rates.lines[0].get_xydata().tolist() == [[1, 1e-4], [5, 2e-4], [10, 0.0]]
    assert losses.get_title() == "my-run: val loss 5.0000"
    assert losses.get_ylabel() == "loss (nats a token)"
    assert (rates.get_ylabel(), rates.get_xlabel()) == ("learning rate", "step")


@pytest.mark.parametrize(
    ("records", "val"),
    [
        (RECORDS[:1], {}),  # one step
        ([{"step": 1, "loss": None, "lr": 1.0}, {"step": 1, "val": {"loss": None}}], {"loss": None}),
        ([], {}),
        ([{"step": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 2000)], {"loss": 1.0}),
    ],
)
def test_any_log_of_a_run_can_be_drawn(records: list[dict], val: dict, tmp_path: Path) -> None:
    assert size(loss_picture(write_run(tmp_path / "$x^{$ 中\U000f1234", records, val))) == (800, 500)


def test_the_users_settings_change_no_picture_and_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, RECORDS)
    before = loss_picture(run)
    with matplotlib.rc_context({"lines.linewidth": 20, "text.usetex": True, "font.family": ["No Such Font"]}):
        assert loss_picture(run) == before
        assert matplotlib.rcParams["lines.linewidth"] == 20
        assert matplotlib.rcParams["font.family"] == ["No Such Font"]
    assert logging.getLogger("matplotlib").level == logging.NOTSET


@pytest.mark.slow  # the list of fonts is made anew
def test_nothing_is_said_where_no_folder_can_hold_the_list_of_fonts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RECORDS)
    (tmp_path / "file").touch()
    code = f"from pathlib import Path; from nlpstack import report; report.add_loss_picture(Path({str(run)!r}), print)"
    env = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "file" / "x"), "HOME": "/proc", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{run}/loss.png: the losses as a picture\n", "")


def test_without_matplotlib_the_picture_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = write_run(tmp_path, RECORDS), []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    add_loss_picture(run, said.append)
    assert said == ["loss.png: left out, pip install 'nlpstack[report]'"]
    assert not (run / "loss.png").exists()


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = write_run(tmp_path, RECORDS), []
    (run / "metrics.jsonl").write_text("{\n")
    add_loss_picture(run, said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: loss.png is left out, it could not be drawn (DataError: ")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in\ndrawing")

    write_run(tmp_path, RECORDS)
    (run / "loss.png").touch()
    monkeypatch.setattr(Figure, "savefig", fail)
    add_loss_picture(run, said.append)
    assert not (run / "loss.png").exists(), "a picture of other numbers"
    assert said[1:] == ["warning: loss.png is left out, it could not be drawn (RuntimeError: in drawing)"]


# -- with a run ----------------------------------------------------------------------------------------------------


def test_every_finished_run_has_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, text = tmp_path / "runs" / "a", write_text(tmp_path)
    words = pretrain(text, out)
    done = nlpstack(*words)
    assert f"{out}/loss.png: the losses as a picture\n" in done.err
    picture = (out / "loss.png").read_bytes()
    assert picture == loss_picture(out)

    (out / "loss.png").unlink()
    again = nlpstack(*words, "--resume")
    assert again.err == f"{out}: already finished after {tiny.STEPS} steps\n{out}/loss.png: the losses as a picture\n"
    assert (out / "loss.png").read_bytes() == picture

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = nlpstack(*words, "--overwrite")
    assert done.code == 0
    assert done.err.endswith("loss.png: left out, pip install 'nlpstack[report]'\n")
    assert not (out / "loss.png").exists(), "the picture of the run that was replaced"


def test_a_run_that_replaces_another_begins_without_its_picture(tmp_path: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "loss.png"):
        (tmp_path / name).touch()
    with RunFolder.open(tmp_path, resume=False, overwrite=True) as folder:
        folder.clear()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_library_call_draws_too(tmp_path: Path) -> None:
    options = RunOptions(flags={"data.paths": [str(write_text(tmp_path))]})
    values = [f"{key}={value}" for key, value in tiny.VALUES.items()]
    pretrain_call("gpt", [*values, "train.steps=2"], out=tmp_path / "run", options=options)
    assert size((tmp_path / "run" / "loss.png").read_bytes()) == (800, 500)
