# SPDX-License-Identifier: GPL-2.0-or-later
"""What steps told a task under weak memory is the same when they are taken again, and is then read, not found again."""

from hypothesis import given
from hypothesis import strategies as st

from rmaplab.sync.memory import Memory, TaskView
from rmaplab.sync.order import ACQUIRE, ALL, FULL, ONCE, PLAIN, READS, RELEASE, WRITES

TASKS = 3
Step = tuple[int, str, int, int, int]  # task, what it does, where, with which ordering, how old the value is


class Cell:
    def __init__(self) -> None:
        self.value = 0


cells = [Cell(), Cell()]
tasks, places = st.integers(0, TASKS - 1), st.integers(0, len(cells) - 1)
steps = st.lists(
    st.one_of(
        st.tuples(tasks, st.just("load"), places, st.sampled_from([PLAIN, ONCE, ACQUIRE]), st.integers(0, 3)),
        st.tuples(tasks, st.just("store"), places, st.sampled_from([PLAIN, ONCE, RELEASE]), st.just(0)),
        st.tuples(tasks, st.just("update"), places, st.sampled_from([ONCE, ACQUIRE, RELEASE, FULL]), st.just(0)),
        st.tuples(tasks, st.just("fence"), places, st.sampled_from([ALL, READS, WRITES]), st.just(0)),
        st.tuples(tasks, st.sampled_from(["acquire", "release"]), places, st.just(0), st.just(0)),
    ),
    max_size=30,
)


def begin(memory: Memory) -> None:
    memory.again()
    while len(memory.tasks) < TASKS:
        memory.tasks.append(TaskView())
    for where, cell in enumerate(cells):
        memory.location(cell, where, "value", 0)


def take(memory: Memory, path: list[Step]) -> list[int]:
    """Take these steps, and say how many views had been made before each."""
    made = []
    for number, (task, what, where, order, age) in enumerate(path):
        made.append(memory.mark())
        if what == "fence":
            memory.fence(task, order, "fence")
        elif what == "acquire":
            memory.acquire(task, where)
        elif what == "release":
            memory.release(task, where)
        else:
            location = memory.location(cells[where], where, "value", 0)
            if what == "load":
                oldest = memory.allowed(task, location, where) - 1
                message = len(location.messages) - 1 - min(age, oldest)
                memory.load(task, location, where, message, order, "load", 1 - where)
            elif what == "store":
                memory.store(task, location, order, "store", number, "task")
            else:
                memory.update(task, location, order, "update", number)
    return [*made, memory.mark()]


def known(memory: Memory) -> list[object]:
    """All that its tasks know."""
    return [
        (view.now, view.aside, view.own, view.later, dict(view.through), view.gone, view.unlocked, view.met, view.last)
        for view in memory.tasks
    ]


@given(steps, st.integers(0, 30), steps)
def test_a_path_that_begins_as_the_last_one_did_ends_as_it_would_alone(
    first: list[Step], same: int, rest: list[Step]
) -> None:
    memory = Memory(frozenset(), racing=True)
    begin(memory)
    marks = take(memory, first)
    same = min(same, len(first))
    second = first[:same] + rest
    begin(memory)
    memory.keep(marks[same])
    made = take(memory, second)
    assert made[: same + 1] == marks[: same + 1]

    alone = Memory(frozenset(), racing=True)
    begin(alone)
    take(alone, second)
    assert known(memory) == known(alone)


def test_what_is_kept_is_read() -> None:
    """The steps that are kept find nothing anew: who keeps more than is the same gets what another path found."""
    memory = Memory(frozenset(), racing=True)
    begin(memory)
    marks = take(memory, [(0, "store", 0, RELEASE, 0), (1, "load", 0, ACQUIRE, 0)])
    found = memory.tasks[1].now
    begin(memory)
    memory.keep(marks[2])
    take(memory, [(0, "store", 0, RELEASE, 0), (1, "load", 0, ACQUIRE, 0)])
    assert memory.tasks[1].now is found
    begin(memory)
    memory.keep(marks[2])
    take(memory, [(0, "store", 0, RELEASE, 0), (1, "load", 1, ACQUIRE, 0)])
    alone = Memory(frozenset(), racing=True)
    begin(alone)
    take(alone, [(0, "store", 0, RELEASE, 0), (1, "load", 1, ACQUIRE, 0)])
    assert known(memory) != known(alone)
