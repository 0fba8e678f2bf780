"""Pictures of a generation. matplotlib is imported when a picture is asked for, not before."""

from rdkernels.plots.charts import acceptance, commits, depths
from rdkernels.plots.common import PlotError, check_file
from rdkernels.plots.front import front
from rdkernels.plots.heat_map import wavefront

# What `rdkernels generate --plot-kind` draws of a trace.
KINDS = {
    "wavefront": wavefront,
    "depths": depths,
    "commits": commits,
    "acceptance": acceptance,
}

__all__ = [
    "KINDS",
    "PlotError",
    "acceptance",
    "check_file",
    "commits",
    "depths",
    "front",
    "wavefront",
]
