"""Progress of work that comes in batches."""

from cohobate import progress
from cohobate.progress import Advance, Meter, advance_early, counting_early, reporting_to, track
from cohobate.thread_map import thread_map


def test_a_long_batch_shows_what_ended_within_it(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0)
    events: list[Advance] = []

    def answer(batch: list[int]) -> list[int]:
        for _ in batch:
            advance_early()
        return batch

    with reporting_to(events.append):
        meter = Meter("answers", 4)
        with counting_early(meter):
            for _, batch in thread_map(answer, [[0, 1, 2], [3]], threads=1):
                meter.advance(len(batch))
        meter.finish()
        advance_early()  # of nobody's
    done = [event.done for event in events]
    assert done[:3] == [0, 1, 2]  # before the first batch has ended
    assert done == sorted(done)
    assert done[-1] == 4


def test_the_last_step_is_shown_when_its_batch_is_saved(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0)
    events: list[Advance] = []
    with reporting_to(events.append):
        for _ in track([1], total=1, label="one", in_batches=True):
            advance_early()
            assert events[-1].done == 0
    assert events[-1].done == 1
