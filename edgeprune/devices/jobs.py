"""The base of all jobs of the agent; `wire` has the table of them.

It travels to devices: standard library only, Python 3.8 and up. So the annotations of fields are types that Python 3.8 can
evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, Generic, TypeVar

Reply = TypeVar("Reply")
MODES: Dict[type, str] = {}  # the name of each job on the wire; `wire` fills it


@dataclass(frozen=True)
class Job(Generic[Reply]):
    """A job of the agent; `deadline_s` is the most that it may take, by the device's clock."""

    deadline_s: float

    @property
    def label(self) -> str:
        """What the job does, for messages."""
        return MODES[type(self)]


@dataclass(frozen=True)
class Work(Job[Reply]):
    """A job that a fresh process does, since it loads a runtime or lasts long."""

    runtime: str
    finishes: ClassVar[bool] = False  # where the host is gone, the agent still lets it come to its end
