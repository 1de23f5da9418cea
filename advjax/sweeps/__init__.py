"""Sweeps: many configurations of one experiment, run once each, whatever is killed meanwhile.

Imported on first use, so that looking at a sweep does not load what training needs.
"""

from typing import TYPE_CHECKING

from advjax._faces import lazy

if TYPE_CHECKING:
    from advjax.sweeps.cluster import Ray as Ray
    from advjax.sweeps.cluster import Slurm as Slurm
    from advjax.sweeps.driver import Told as Told
    from advjax.sweeps.driver import sweep as sweep
    from advjax.sweeps.executors import Executor as Executor
    from advjax.sweeps.executors import Here as Here
    from advjax.sweeps.executors import Processes as Processes
    from advjax.sweeps.grid import Grid as Grid
    from advjax.sweeps.grid import choices as choices
    from advjax.sweeps.grid import geometric as geometric
    from advjax.sweeps.grid import linear as linear
    from advjax.sweeps.grid import log_uniform as log_uniform
    from advjax.sweeps.grid import sample as sample
    from advjax.sweeps.grid import together as together
    from advjax.sweeps.grid import uniform as uniform
    from advjax.sweeps.outcome import Outcome as Outcome
    from advjax.sweeps.outcome import SweepError as SweepError
    from advjax.sweeps.page import write_page as write_page
    from advjax.sweeps.search import Search as Search
    from advjax.sweeps.store import Cell as Cell
    from advjax.sweeps.store import Store as Store
    from advjax.sweeps.table import Table as Table
    from advjax.sweeps.table import export as export
    from advjax.sweeps.table import records as records
    from advjax.sweeps.table import tabulate as tabulate

__getattr__, __dir__ = lazy(__name__)
