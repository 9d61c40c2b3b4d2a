"""The live line of a run."""

import io
import re
from unittest.mock import patch

import pytest
from rich.console import Console

from big_vision_lite.training import progress
from big_vision_lite.training.progress import Display, Forecast


def test_nothing_is_compiling_once_steps_run():
    display = Display(10, 0)
    task, = display._progress.tasks
    assert task.fields["summary"] == "compiling"
    display.step(1)
    assert (task.completed, task.fields["summary"]) == (1, "training")
    display._progress.update(task.id, summary="loss 0.5")
    display.step(2)
    assert (task.completed, task.fields["summary"]) == (2, "loss 0.5")


@pytest.mark.parametrize("start", [0, 30, 97, 100])
@pytest.mark.parametrize("intervals", [(20, 7), (None, 100), (100, None), (1, 300)])
def test_the_time_left_counts_evaluations_and_saves(start, intervals):
    """Against a simulated run: after its first evaluation and save, the forecast is the time that it then takes."""
    now, seconds = [0.0], {"step": 0.5, "evaluation": 60.0, "save": 9.0}
    with patch.object(progress.time, "perf_counter", lambda: now[0]):
        forecast, forecasts = Forecast(start, 100, *intervals), []
        assert str(forecast) == ""
        for step in range(start + 1, 101):
            now[0] += seconds["step"]
            forecast.update(step, seconds["step"])
            forecasts.append((now[0], str(forecast)))
            for kind, interval in zip(("evaluation", "save"), intervals, strict=True):
                if step == 100 or (interval and step % interval == 0):
                    with forecast.timing(kind, step):
                        now[0] += seconds[kind]
                    forecasts.append((now[0], str(forecast)))
        assert all("over" in text or text == f"{progress.duration(now[0] - at)} left" for at, text in forecasts)
        if start < 100:
            assert forecasts[-1][1] == "0 s left" and "over" in forecasts[0][1]


def test_the_time_left_moves_between_reports():
    now = [0.0]
    with patch.object(progress.time, "perf_counter", lambda: now[0]):
        forecast = Forecast(0, 100)
        forecast.update(50, 2.0)
        assert str(forecast) == "over 1 min 40 s left"
        now[0] += 30
        assert str(forecast) == "over 1 min 10 s left"
        now[0] += 300
        assert str(forecast) == "over 0 s left"


def test_an_evaluation_has_its_own_line_and_scores_stay():
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=120, soft_wrap=True, _environ={})
    with Display(10, 0, console=console) as display:
        display.step(5)
        with display.evaluation("validation", 2000) as advance:
            advance(500)
            display._progress.refresh()
            during = plain(printed)
            advance(1500)
            display.say("step 5: validation top1 0.25")
        display._progress.refresh()
        at_end = plain(printed)[len(during):]
    assert re.search(r"step +5/10 .*training", during) and re.search(r"validation +500/2000 .*images", during)
    assert "step 5: validation top1 0.25" in at_end
    assert not re.search(r"validation +\d+/2000", at_end.splitlines()[-1])


def plain(printed: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.getvalue()).replace("\r", "\n")


def test_a_signal_is_acknowledged_once(capsys):
    display = Display(10, 0)
    for number in (17, 2, 15, 2):  # SIGCHLD asks for nothing
        display.acknowledge(number)
    said = capsys.readouterr().out.strip()
    assert said.startswith("SIGINT: the run stops after the step") and said.count("the run stops") == 1
