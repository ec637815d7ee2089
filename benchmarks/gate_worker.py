"""A measuring process whose first side is slower by a busy loop of EDGETL_PLANT_NS: what a gate must see."""

import os
import time

from edgetl.bench import jobs, worker

_calls = jobs._calls


def planted(sides):
    """Returns the calls, the first one with a busy loop behind it."""
    first, *others = _calls(sides)
    extra = int(os.environ["EDGETL_PLANT_NS"])

    def slower():
        first()
        end = time.perf_counter_ns() + extra
        while time.perf_counter_ns() < end:
            pass

    return [slower, *others]


if __name__ == "__main__":
    jobs._calls = planted
    worker.main()
