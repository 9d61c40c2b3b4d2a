"""The live line of a run."""

from big_vision_lite.training.progress import Display


def test_nothing_is_compiling_once_steps_run():
    display = Display(10, 0)
    task, = display._progress.tasks
    assert task.fields["summary"] == "compiling"
    display.step(1)
    assert (task.completed, task.fields["summary"]) == (1, "training")
    display._progress.update(task.id, summary="loss 0.5")
    display.step(2)
    assert (task.completed, task.fields["summary"]) == (2, "loss 0.5")
