"""Progress: rate and time left against arithmetic by hand, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import os
import time

import pytest

from gram_jax.runtime import Progress, hidden_bar


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rate_leaves_out_the_first_step(caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO), Progress(101, "train", stream=io.StringIO(), clock=clock) as progress:
        clock.now = 60.0  # compilation
        progress.update(loss=3.0)
        assert progress.rate is None
        for _ in range(20):
            clock.now += 2.0
            progress.update(loss=0.25)
        assert progress.rate == pytest.approx(0.5)
        # 80 steps left at half a step a second: 160 seconds
        assert progress.line() == "train 21/101 steps (20.8 %), 2 s/step, 0:02:40 left, loss=0.25"
    # every 30 seconds of 100, and one line at the end
    assert [record.message.split()[1] for record in caplog.records] == ["1/101", "16/101", "21/101"]


def test_resumed_run_counts_only_its_own_steps():
    clock = Clock()
    progress = Progress(1000, initial=900, stream=io.StringIO(), clock=clock)
    progress.update()
    clock.now = 10.0
    progress.update(9)
    assert progress.done == 910
    assert progress.rate == pytest.approx(0.9)
    assert progress.line() == "910/1000 steps (91.0 %), 1.11 s/step, 0:01:40 left"


def test_bar_on_a_terminal():
    terminal = Terminal()
    with Progress(4, "train", stream=terminal) as progress:
        for loss in (4.0, 3.0, 2.0, 1.0):
            progress.update(loss=loss)
    text = terminal.getvalue()
    assert "4/4" in text
    assert "loss=1" in text
    assert "train" in text


def test_values_are_read_only_when_something_is_drawn():
    class Costly(float):
        def __float__(self) -> float:
            raise AssertionError("read")

    progress = Progress(10, stream=io.StringIO(), clock=Clock())
    progress.update(loss=Costly(1.0))


def test_over_iterates_and_counts(caplog):
    with caplog.at_level(logging.INFO):
        assert list(Progress.over(iter("abc"), "letters", total=3, stream=io.StringIO())) == ["a", "b", "c"]
    assert caplog.messages[-1].startswith("letters 3/3 steps (100.0 %)")


def test_other_processes_are_silent(monkeypatch, caplog):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    terminal = Terminal()
    with caplog.at_level(logging.INFO), Progress(1, stream=terminal) as progress:
        progress.update()
    assert (terminal.getvalue(), caplog.records) == ("", [])


@pytest.mark.parametrize("initial", [-1, 4])
def test_bad_initial(initial):
    with pytest.raises(ValueError, match=f"initial={initial}"):
        Progress(3, initial=initial)


def test_a_batch_that_is_counted_item_by_item_gives_no_rate_of_its_own():
    clock = Clock()
    progress = Progress(36, "predict", unit="image", stream=io.StringIO(), clock=clock)
    for second in (1, 2, 3):  # 12 images a second, counted at once at its end
        clock.now = float(second)
        for _ in range(12):
            clock.now += 1e-4
            progress.update()
        assert progress.rate == (None if second == 1 else pytest.approx(12, rel=0.01))


def test_time_left_goes_by_the_work_of_the_steps():
    clock = Clock()
    progress = Progress(4, unit="unit", work=130, stream=io.StringIO(), clock=clock)
    progress.update(work=0)
    clock.now = 100.0
    progress.update(work=100)  # one unit of work a second; 30 are left in two units
    assert progress.line() == "2/4 units (50.0 %), 100 s/unit, 0:00:30 left"


def test_the_last_line_comes_once_and_a_long_step_is_no_silence(caplog):
    with caplog.at_level(logging.INFO), Progress(1, "once", stream=io.StringIO(), every_seconds=0.05) as progress:
        time.sleep(0.2)
        assert "once 0/1 steps" in caplog.text
        progress.update()
    assert caplog.messages.count(caplog.messages[-1]) == 1


def test_lines_are_written_above_the_bar():
    terminal = Terminal()
    with Progress(2, "train", stream=terminal) as progress:
        progress.update()
        with hidden_bar():
            terminal.write("coop: 81.2\n")
    before, _, after = terminal.getvalue().partition("coop: 81.2\n")
    assert before.endswith("\r\x1b[K")  # erased to the start of the line
    assert after.startswith("\r\x1b[K[")  # and drawn again


def test_a_narrow_terminal_shows_whole_values_only(monkeypatch):
    terminal = Terminal()
    terminal.fileno = lambda: 1
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((60, 24)))
    progress = Progress(20, "train", stream=terminal)
    progress.update(5, loss=0.25, accuracy=0.75, error=0.125)
    progress.close()
    last = terminal.getvalue().rstrip("\n").rpartition("\x1b[K")[2]
    assert last == "train 5/20 steps (25.0 %), 0:00:00 passed, loss=0.25"


def test_a_step_of_hardly_any_work_tells_no_time_left():
    clock = Clock()
    progress = Progress(4, unit="unit", work=1102, stream=io.StringIO(), clock=clock)
    progress.update(work=1)
    clock.now = 10.0
    progress.update(work=1)  # 1,100 units of work like this one would take three hours
    assert "left" not in progress.line()
    clock.now = 110.0
    progress.update(work=550)
    assert "0:01:50 left" in progress.line()  # 551 units of work in 110 s, 550 are left
