"""Which image goes into which part of the data: by seed, and never one source image into two parts."""

import random
import re
from collections.abc import Mapping, Sequence

SPLITS = ("train", "val", "test")
# plate3_crop02, plate3-tile-7, plate3_x256_y0, plate3_r1c4: what programs append when they cut an image up.
CROP = r"(.+?)[_-](?:(?:crop|tile|patch|part|aug|copy)[_-]?\d*|[xyrc]\d+(?:[_-]?[xyrc]\d+)?)(?:[_-]\d+)*"


def source_of(name: str, pattern: str = CROP) -> str:
    """The source image of an image's name: the first group of `pattern` (the whole match without one), or the name.

    Raises:
        re.error: the pattern is no regular expression.
    """
    found = re.fullmatch(pattern, name)
    return found[1 if found.re.groups else 0] if found else name


def split(sources: Mapping[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Name of image → 'train', 'val' or 'test'; `sources` has the source of each image.

    Sources are shuffled by the seed; the first ones fill every part once, so that none stays empty if there are enough,
    each further one goes where most images are missing. The order in which images are given makes no difference.

    Raises:
        ValueError: the fractions are no three numbers ≥ 0 that add up to 1, or there are fewer than two sources.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or not fractions[0]:
        raise ValueError(f"fractions are three numbers that add up to 1, not {', '.join(map(str, fractions))}")
    groups: dict[str, list[str]] = {}
    for name in sorted(sources):
        groups.setdefault(sources[name], []).append(name)
    if len(groups) < 2:
        raise ValueError("images of at least two sources are needed: one to train on, one to check with")
    order = sorted(groups)
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret: the same seed gives the same parts
    wanted = dict(zip(SPLITS, (fraction * len(sources) for fraction in fractions), strict=True))
    empty = [part for part in SPLITS if wanted[part] > 0]
    result: dict[str, str] = {}
    for source in order:
        part = empty.pop(0) if empty else max(SPLITS, key=lambda part: wanted[part])
        wanted[part] -= len(groups[source])
        result |= dict.fromkeys(groups[source], part)
    return result
