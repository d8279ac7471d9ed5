"""What a notebook sees of the exercises: ``check.NAME(answer)``, and the reader's progress.

``framework`` compares answers, ``draws`` has random arguments, ``nbNN`` the exercises,
``course_map`` the table of what has passed.
"""

from importlib import import_module
from pkgutil import iter_modules

from comet_lib.checks.course_map import CourseMap, course_map
from comet_lib.checks.framework import (
    EXERCISES,
    CheckFailed,
    Exercise,
    Misconception,
    or_reference,
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
    "reference",
]

for _module in iter_modules(__path__):  # importing a notebook's module registers its exercises
    if _module.name.startswith("nb"):
        import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Exercise:
    """``checks.kd_loss`` is the exercise of that name."""
    try:
        return EXERCISES[name]
    except KeyError:
        raise AttributeError(
            f"there is no exercise {name!r}; choose one of: {', '.join(sorted(EXERCISES))}"
        ) from None
