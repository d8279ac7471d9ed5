"""What a notebook sees of the exercises: ``check.NAME(answer)``, and the reader's progress.

The framework is in ``comet_lib.grading``, the exercises are in ``comet_lib.exercises``.
"""

from comet_lib import exercises as exercises  # registers them
from comet_lib.grading import (
    EXERCISES,
    CheckFailed,
    CourseMap,
    Exercise,
    Misconception,
    course_map,
    or_reference,
    progress,
    reference,
)

__all__ = [
    "EXERCISES",
    "CheckFailed",
    "CourseMap",
    "Exercise",
    "Misconception",
    "course_map",
    "or_reference",
    "progress",
    "reference",
]


def __getattr__(name: str) -> Exercise:
    """``checks.kd_loss`` is the exercise of that name."""
    try:
        return EXERCISES[name]
    except KeyError:
        raise AttributeError(
            f"there is no exercise {name!r}; choose one of: {', '.join(sorted(EXERCISES))}"
        ) from None
