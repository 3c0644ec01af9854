"""Any image → staged PNGs, and back: `plan` reads headers, `stage` writes, `read_map` tells what each staged image is.

    selection   which planes           discover   names → files         kinds, readers/   one module per kind of file
    planning    headers → plan         scaling    values → grey levels  png        chunks, checksums, writer
    staging     plan → folder          mapfile    inputs.json           pixels     projection, samples, opacity
    base        what they share, limits    single     one picture → array, for services

Coordinates: x to the right, y down, pixel (0, 0) at the top left of the staged image.
"""

from segserve.inputs.base import Series, Source
from segserve.inputs.discover import inside
from segserve.inputs.kinds import SUFFIXES
from segserve.inputs.mapfile import digest, read_map, short_names
from segserve.inputs.planning import InputPlan, describe, plan, structure
from segserve.inputs.selection import Selection, channel_list
from segserve.inputs.single import decoded, foreign
from segserve.inputs.staging import stage

__all__ = [
    "SUFFIXES",
    "InputPlan",
    "Selection",
    "Series",
    "Source",
    "channel_list",
    "decoded",
    "describe",
    "digest",
    "foreign",
    "inside",
    "plan",
    "read_map",
    "short_names",
    "stage",
    "structure",
]
