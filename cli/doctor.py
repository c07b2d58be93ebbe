"""`image-refinery doctor`: print what is here, what is missing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from .. import _setup
from ..captioning.kept import KeptAnswers, answers_path, open_answers
from ..memory.report import readable
from .terminal import TERMINAL


def doctor(*, safe: bool = False) -> int:
    """Print one line per check; return 1 if something that is needed is missing.

    Args:
        safe: print the report that may be published, instead.
    """
    sections: list[_setup.Section] = []
    for section in _sections():
        sections.append(section)
        if not safe:
            for fact in section.facts:
                if fact.text:
                    print(fact.text)
    problems = [problem for section in sections for problem in section.problems]
    if safe:
        print(_setup.report(sections))
    elif not problems:
        print("\nEverything needed to describe images is here.")
    else:
        print("\nTo do:", *(f"  - {problem.text}" for problem in problems), sep="\n")
    return 1 if problems else 0


def _sections() -> Iterator[_setup.Section]:
    yield _setup.packages()
    yield _setup.graphics()
    yield from _setup.servers(TERMINAL)
    yield _setup.engine()
    yield _setup.answers()
    yield _setup.refiner()


def clear_answers() -> int:
    """Remove the answers of earlier runs; return 0."""
    with open_answers() as kept:
        # With keep_answers = false, those of before may still be there.
        answers = kept or KeptAnswers(answers_path())
        count, size = answers.totals()
        answers.clear()
        answers.close()
    print(f"Removed {count} kept answers ({readable(size)}) from {answers.path}.")
    return 0
