"""What computation costs: arms that do the same work are timed side by side, counted, and compared with one of them.

``rounds`` takes the times, ``ratios`` compares them, ``counters`` counts what does not depend on the machine, and
``exactness`` says whether an arm gives the same result. ``comparison`` does all of it and holds the table. ``machine``
says where it was measured. ``guidon bench`` applies it to a model: ``choices`` reads what is compared, ``model`` takes
a pipeline apart, ``parts`` makes the arms.
"""

from typing import TYPE_CHECKING

from ...core.lazy import imported_later

if TYPE_CHECKING:
    from .comparison import Comparison, Row, compare_speed, write_measurements
    from .counters import Counts, count
    from .exactness import TOLERANCE, Exactness, compare_results
    from .machine import describe_machine, machine_line
    from .parts import measure_part
    from .ratios import paired_ratio
    from .rounds import Arm, Times, take_rounds

__all__ = [
    "TOLERANCE", "Arm", "Comparison", "Counts", "Exactness", "Row", "Times", "compare_results", "compare_speed",
    "count", "describe_machine", "machine_line", "measure_part", "paired_ratio", "take_rounds", "write_measurements",
]  # fmt: skip
__getattr__ = imported_later(__name__, "comparison", "counters", "exactness", "machine", "parts", "ratios", "rounds")
