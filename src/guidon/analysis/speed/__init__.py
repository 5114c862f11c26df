"""What computation costs: arms that do the same work are timed side by side, counted, and compared with one of them.

``rounds`` takes the times, ``ratios`` compares them, ``counters`` counts what does not depend on the machine, and
``exactness`` says whether an arm gives the same result. ``comparison`` does all of it and holds the table. ``machine``
says where it was measured. ``subject`` and ``sections`` apply it to a model: ``guidon bench``.
"""

from .comparison import Comparison, Row, compare_speed, write_measurements
from .counters import Counts, count
from .exactness import TOLERANCE, Exactness, compare_results
from .machine import describe_machine
from .ratios import paired_ratio
from .rounds import Arm, Times, take_rounds

__all__ = [
    "TOLERANCE", "Arm", "Comparison", "Counts", "Exactness", "Row", "Times", "compare_results", "compare_speed",
    "count", "describe_machine", "paired_ratio", "take_rounds", "write_measurements",
]  # fmt: skip
