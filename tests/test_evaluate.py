"""Comparing segmentations: pixels of rings, overlaps, matching, measures, drift, reading both sides, the command."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from segserve_sdk import contours

from segserve import cli, comparison, evaluate, sides
from segserve import format as polygons
from segserve.cli.compare import thresholds
from segserve.errors import InvalidParameters, NotFound, OutputInvalid, TooLarge, UsageError
from segserve.evaluate import Objects, Overlap, runs
from segserve.format.document import Builder, Document

Labels = np.ndarray[Any, Any]


def document(*images: list[Any], scores: float | None = None, label: str = "Cell") -> Document:
    """Rings per image."""
    builder = Builder()
    for rings in images:
        values = [math.nan if scores is None else scores] * len(rings)
        builder.add_image([[tuple(point) for point in ring] for ring in rings], [label] * len(rings), values)
    return builder.build("m", "0.2")


def traced(labels: Labels) -> list[Any]:
    return [ring.tolist() for _, ring in contours.polygons(labels)]


def blobs(seed: int, count: int = 40, side: int = 96) -> Labels:
    random = np.random.default_rng(seed)
    image = np.zeros((side, side), np.uint16)
    for value in range(1, count + 1):
        centre, axes = random.integers(0, side, 2).tolist(), random.integers(1, 10, 2).tolist()
        cv2.ellipse(image, centre, axes, int(random.integers(180)), 0, 360, value, -1)
    return image


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y], [x + width - 1, y], [x + width - 1, y + height - 1], [x, y + height - 1]]


def counted(pred: Labels, true: Labels) -> dict[tuple[int, int], int]:
    """Shared pixels by (predicted, true) value, the slow way."""
    pairs, counts = np.unique(np.stack([pred.ravel(), true.ravel()]), axis=1, return_counts=True)
    return {(int(a), int(b)): int(n) for (a, b), n in zip(pairs.T, counts, strict=True) if a and b}


def overlap(pred: Labels, true: Labels) -> Overlap:
    return evaluate.overlap(Objects.from_labels(pred), Objects.from_labels(true))


# ---------------------------------------------------------------------------------------------- rings → pixels

QUARTERS = st.integers(-12, 60).map(lambda value: value / 4)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.tuples(QUARTERS, QUARTERS), min_size=1, max_size=9), min_size=1, max_size=4))
def test_runs_are_the_pixels_that_the_sdk_paints(rings: list[list[tuple[float, float]]]) -> None:
    found = Objects.from_document(document(rings)).runs.clipped((16, 17))
    for number, ring in enumerate(rings):
        expected = contours.mask([(1, np.array(ring))], (16, 17))
        own = found.owner == number
        alone = runs.Runs(found.owner[own] * 0, found.row[own], found.start[own], found.stop[own])
        assert np.array_equal(runs.painted(alone, (16, 17)), expected)


def test_batches_of_rings_give_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Objects.from_document(document(traced(blobs(1))))
    whole = side.runs
    monkeypatch.setattr(runs, "BATCH", 20)
    again = Objects.from_document(document(traced(blobs(1)))).runs
    assert all(np.array_equal(getattr(whole, name), getattr(again, name)) for name in runs.Runs.__slots__)


def test_several_rings_of_one_object_are_united() -> None:
    points = np.array([*box(0, 0, 4, 4), *box(2, 2, 4, 4), *box(9, 0, 1, 3)], float)
    found = runs.of_rings(points, np.array([0, 4, 8, 12]), np.array([0, 0, 0]))
    assert found.areas(1).tolist() == [16 + 16 - 4 + 3]


def test_painting_overlapping_objects_the_last_one_wins() -> None:
    mask = Objects.from_document(document([box(0, 0, 4, 4), box(2, 2, 4, 4)])).mask((8, 8))
    assert mask[3, 3] == 2
    assert np.bincount(mask.ravel()).tolist() == [64 - 28, 12, 16]


def test_rings_beyond_memory_are_refused() -> None:
    huge = document([[[0, -2e9], [1, 2e9], [5, 0]]])
    with pytest.raises(TooLarge, match="rows of pixels"):
        evaluate.overlap(Objects.from_document(huge), Objects.from_document(huge))


def test_far_apart_rings_do_not_overflow() -> None:
    far = document([[[-2e9, -2e9], [-2e9 + 3, -2e9], [-2e9, -2e9 + 3]], [[2e9, 2e9], [2e9 + 3, 2e9], [2e9, 2e9 + 3]]])
    found = evaluate.overlap(Objects.from_document(far), Objects.from_document(far))
    assert found.iou.tolist() == [1.0, 1.0]
    assert found.pred_areas.tolist() == [10.0, 10.0]


# -------------------------------------------------------------------------------------------------- overlaps


@pytest.mark.parametrize("seed", range(5))
def test_overlap_counts_pixels_on_both_ways(seed: int) -> None:
    pred, true = np.roll(blobs(seed), 2, 1), blobs(seed)
    labels, other = Objects.from_labels(pred), Objects.from_labels(true)
    by_labels = evaluate.overlap(labels, other)
    by_runs = evaluate.overlap(Objects.from_runs(labels.runs, len(labels)), other)
    found = zip(labels.ids[by_labels.pred], other.ids[by_labels.true], by_labels.shared, strict=True)
    assert {(int(a), int(b)): int(n) for a, b, n in found} == counted(pred, true)
    assert by_labels.both_pixels == np.count_nonzero((pred > 0) & (true > 0))
    for name in Overlap.__dataclass_fields__:
        assert np.array_equal(getattr(by_labels, name), getattr(by_runs, name)), name


def test_many_pairs_are_counted_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, true = np.roll(blobs(3), 2, 1), blobs(3)
    few = overlap(pred, true)
    monkeypatch.setattr("segserve.evaluate.contingency.DENSE", 0)
    many = overlap(pred, true)
    for name in Overlap.__dataclass_fields__:
        assert np.array_equal(getattr(few, name), getattr(many, name)), name


def test_large_label_values() -> None:
    true = blobs(7).astype(np.uint32)
    pred = np.where(true > 0, true.astype(np.uint64) * 2**33 + 5, 0)
    found = overlap(pred, true)
    assert (found.iou == 1).all()
    assert len(found.iou) == len(np.unique(true)) - 1
    assert np.array_equal(Objects.from_labels(pred).runs.areas(40)[: len(found.iou)], found.pred_areas)
    with pytest.raises(UsageError, match="2⁶³"):
        Objects.from_labels(np.full((2, 2), 2**63, np.uint64))
    assert np.array_equal(evaluate.picture(None, pred, true), evaluate.picture(None, true, true))


def test_a_document_is_the_label_image_that_it_was_traced_from() -> None:
    labels = blobs(2)
    labels[50:70, 50:70] = 99
    labels[55:60, 55:60] = 0  # a hole
    labels[58, 57] = 98  # one pixel within it
    labels[0, 80:90] = 97
    parts = [(value, ring) for value, ring in contours.polygons(labels)]
    single = [value for value in np.unique(labels[labels > 0]) if sum(own == value for own, _ in parts) == 1]
    labels = np.where(np.isin(labels, single), labels, 0)
    side = Objects.from_document(document(traced(labels)))
    found = evaluate.overlap(side, Objects.from_labels(labels))
    assert len(found.iou) == len(single)
    assert (found.iou == 1).all()


def test_overlapping_polygons_are_all_counted() -> None:
    pred = Objects.from_document(document([box(0, 0, 10, 10), box(0, 0, 10, 10), box(5, 0, 10, 10)]))
    true = Objects.from_document(document([box(0, 0, 10, 10)]))
    found = evaluate.overlap(pred, true)
    assert found.shared.tolist() == [100, 100, 50]
    assert (found.pred_pixels, found.true_pixels, found.both_pixels) == (150, 100, 100)
    at = evaluate.tally(found, [0.5]).at(0)
    assert (at["tp"], at["fp"], at["fn"]) == (1, 2, 0)


def test_touching_objects_share_nothing() -> None:
    assert overlap(np.array([[1, 1, 0, 0]]), np.array([[0, 0, 1, 1]])).shared.tolist() == []


def test_pixels_outside_the_image_do_not_count() -> None:
    mask = np.zeros((10, 10), int)
    mask[:, 5:] = 1
    outside = Objects.from_document(document([box(5, -3, 20, 30)]))
    assert evaluate.overlap(outside, Objects.from_labels(mask)).iou.tolist() == [1.0]


def test_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"different shapes.*4×5 and 5×4"):
        overlap(np.zeros((4, 5), int), np.zeros((5, 4), int))


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.zeros((3, 3, 3), int), np.full((2, 2), -1)])
def test_what_is_no_label_image_is_refused(bad: Labels) -> None:
    with pytest.raises(UsageError, match="label image"):
        Objects.from_labels(bad)


# ------------------------------------------------------------------------------------------------- matching


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([0.05, 0.2, 0.3, 0.5, 0.7]))
def test_matching_is_the_dense_optimum(seed: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    rings = [
        [box(*random.integers(0, 20, 2), *random.integers(1, 12, 2)) for _ in range(random.integers(1, 12))]
        for _ in "ab"
    ]
    found = evaluate.overlap(*(Objects.from_document(document(side)) for side in rings))
    dense = np.zeros((len(rings[1]), len(rings[0])))
    dense[found.true, found.pred] = found.iou
    costs = -(dense >= threshold).astype(float) - dense / (2 * min(dense.shape))
    rows, columns = linear_sum_assignment(costs)
    best = dense[rows, columns]
    matches = evaluate.match(found, threshold)
    assert len(matches) == np.count_nonzero(best >= threshold)
    assert len(set(matches.pred)) == len(set(matches.true)) == len(matches)
    everything = evaluate.match(found, threshold, rest=True)
    weights = (everything.iou >= threshold) + everything.iou / (2 * min(dense.shape))
    assert weights.sum() == pytest.approx(-costs[rows, columns].sum())


# -------------------------------------------------------------------------------------------------- measures


def test_numbers_by_hand() -> None:
    pred, true = np.zeros((2, 20), int), np.zeros((2, 20), int)
    true[0, 0:10], true[0, 12:16], true[1, 0:4] = 1, 2, 3
    pred[0, 0:8], pred[0, 15:20], pred[1, 10:12] = 1, 2, 3
    found = evaluate.tally(overlap(pred, true), [0.5, 0.1])
    half, tenth = found.at(0), found.at(1)
    assert (half["tp"], half["fp"], half["fn"]) == (1, 2, 2)
    assert half["ap"] == 1 / 5
    assert half["panoptic_quality"] == pytest.approx(0.8 / 3)
    assert tenth["tp"] == 2
    assert tenth["mean_matched_iou"] == pytest.approx((0.8 + 1 / 8) / 2)
    overall = found.overall()
    assert overall["dice"] == pytest.approx(2 * 9 / (15 + 18))
    assert overall["seg"] == pytest.approx(0.8 / 3)  # of the second only a quarter is covered
    assert overall["aji"] == pytest.approx((8 + 1) / (10 + 8 + 4 + 2))
    assert overall["aji_cellpose"] == pytest.approx(9 / 24)


@pytest.mark.parametrize("seed", range(6))
def test_aji_and_seg_as_their_papers_say(seed: int) -> None:
    true = blobs(seed, 25)
    pred = np.roll(blobs(seed + 100, 5), 1, 0).astype(int)
    pred = np.where(pred > 0, pred + 100, np.roll(true, (2, -2), (0, 1)))
    shared, union, used, seg = 0, 0, set(), 0.0
    for value in np.unique(true[true > 0]):
        own = true == value
        ious = {}
        for other in np.unique(pred[own & (pred > 0)]):
            both, either = np.count_nonzero(own & (pred == other)), np.count_nonzero(own | (pred == other))
            ious[other] = both / either
            seg += both / either if both > 0.5 * np.count_nonzero(own) else 0
        if not ious:
            union += np.count_nonzero(own)
            continue
        best = max(ious, key=ious.__getitem__)
        used.add(best)
        shared += np.count_nonzero(own & (pred == best))
        union += np.count_nonzero(own | (pred == best))
    union += sum(np.count_nonzero(pred == value) for value in np.unique(pred[pred > 0]) if value not in used)
    overall = evaluate.tally(overlap(pred, true), [0.5]).overall()
    assert overall["aji"] == pytest.approx(shared / union)
    assert overall["seg"] == pytest.approx(seg / len(np.unique(true[true > 0])))


def test_empty_images() -> None:
    empty, one = np.zeros((4, 4), int), np.eye(4, dtype=int)
    nothing = evaluate.tally(overlap(empty, empty), [0.5])
    assert math.isnan(nothing.at(0)["ap"])
    assert all(math.isnan(value) for value in nothing.overall().values())
    for pred, true in ((empty, one), (one, empty)):
        found = evaluate.tally(overlap(pred, true), [0.5])
        assert found.at(0)["ap"] == found.at(0)["f1"] == found.overall()["dice"] == found.overall()["aji"] == 0
    missed = evaluate.tally(overlap(empty, one), [0.5])
    assert evaluate.pool([nothing, missed]).at(0)["fn"] == 1
    assert evaluate.mean_of_images([nothing, missed])["at"][0]["ap"] == 0
    assert math.isnan(evaluate.mean_of_images([nothing])["mean_ap"])


def test_no_pixels_at_all() -> None:
    assert len(overlap(np.zeros((0, 5), int), np.zeros((0, 5), int)).shared) == 0


def test_pooled_numbers_are_of_sums() -> None:
    big, small = blobs(1, 60), blobs(2, 3)
    alone = [evaluate.tally(overlap(np.roll(side, 1, 0), side), [0.5, 0.75]) for side in (big, small)]
    beside = np.hstack([big, small.astype(int) + 1000 * (small > 0)])
    shifted = np.hstack([np.roll(big, 1, 0), np.roll(small, 1, 0).astype(int) + 1000 * (np.roll(small, 1, 0) > 0)])
    whole = evaluate.tally(overlap(shifted, beside), [0.5, 0.75])
    pooled, expected = evaluate.pool(alone).as_dict(), whole.as_dict()
    assert pooled.pop("at") == [pytest.approx(one) for one in expected.pop("at")]
    assert pooled == pytest.approx(expected)


def test_coco_ap_needs_scores_and_ranks_by_them() -> None:
    true = Objects.from_document(document([box(0, 0, 10, 10), box(20, 0, 10, 10)]))
    pred = document([box(0, 0, 10, 10), box(50, 50, 5, 5), box(20, 0, 10, 10)])
    assert evaluate.coco_scores([ranked(Objects.from_document(pred), true)], [0.5]) is None
    scored = Objects(np.arange(1, 4), pred.labels, np.array([0.9, 0.5, 0.1]), Objects.from_document(pred).form)
    found = evaluate.coco_scores([ranked(scored, true)], [0.5])
    assert found is not None
    assert found.recall == (1.0,)
    assert found.ap[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    late = Objects(scored.ids, pred.labels, np.array([0.5, 0.9, 0.1]), scored.form)  # a false alarm comes first
    after = evaluate.coco_scores([ranked(late, true)], [0.5])
    assert after is not None
    assert after.ap[0] == pytest.approx(2 / 3)  # the precision at a lower recall is not less than at a higher one
    first = evaluate.coco_scores([ranked(scored, true)], [0.5], max_detections=1)
    assert first is not None
    assert first.recall == (0.5,)


def ranked(pred: Objects, true: Objects) -> evaluate.Ranked:
    return evaluate.Ranked(evaluate.overlap(pred, true), pred.scores, pred.names, true.names)


# ---------------------------------------------------------------------------------------------------- drift


def test_drift_says_what_became_of_each_object() -> None:
    before = Objects.from_document(document([box(0, 0, 10, 10), box(20, 0, 10, 10), box(40, 0, 10, 10)], scores=0.5))
    after = Objects.from_document(document([box(60, 0, 5, 5), box(40, 0, 10, 9), box(0, 0, 10, 10)], scores=0.75))
    found = evaluate.drift(after, before)
    told = [(change.status, change.reference, change.now, round(change.iou, 3)) for change in found.changes]
    assert told == [("same", 1, 3, 1.0), ("lost", 2, None, 0.0), ("changed", 3, 2, 0.9), ("new", None, 1, 0.0)]
    assert found.changes[0].score == 0.25
    assert found.value == pytest.approx(1 - 1.9 / 3)
    assert found.as_dict()["iou"]["q50"] == pytest.approx(0.9)
    assert evaluate.drift(before, before).value == 0
    empty = Objects.from_document(document([]))
    assert evaluate.drift(empty, empty).value == 0
    assert evaluate.drift(empty, before).value == 1


def test_drift_tells_another_class() -> None:
    before, after = (Objects.from_document(document([box(0, 0, 4, 4)], label=name)) for name in ("Cell", "Debris"))
    assert evaluate.drift(after, before).as_dict()["renamed"] == 1


# -------------------------------------------------------------------------------------------------- pictures


def test_picture_shows_hits_misses_and_false_alarms() -> None:
    from segserve.evaluate import drawing

    pred, true = np.zeros((60, 60), int), np.zeros((60, 60), int)
    true[5:15, 5:15], true[5:15, 30:40] = 1, 2
    pred[5:15, 5:15], pred[40:50, 5:15] = 7, 8
    drawn = evaluate.picture(np.zeros((60, 60), np.uint16), pred, true)
    assert drawn.shape == (60, 60, 3)
    assert drawn[5, 5].tolist() == list(drawing.HIT)
    assert drawn[5, 30].tolist() == list(drawing.MISS)
    assert drawn[40, 5].tolist() == list(drawing.FALSE_ALARM)
    assert drawn[10, 10].tolist() == [0, 0, 0]  # hits are not filled
    assert drawn[10, 35].any()
    assert evaluate.picture(None, pred, true, largest=20).shape == (20, 20, 3)
    with pytest.raises(UsageError, match="60"):
        evaluate.picture(np.zeros((5, 5)), pred, true)


# ------------------------------------------------------------------------------------------------ both sides


def write_document(path: Path, found: Document) -> Path:
    path.write_bytes(polygons.encode(found))
    return path


def test_every_kind_of_side_means_the_same(tmp_path: Path) -> None:
    first, second = (single_parts(blobs(seed)) for seed in (1, 2))
    folder = tmp_path / "masks"
    folder.mkdir()
    tifffile.imwrite(folder / "a_masks.tif", first)
    np.save(folder / "b_masks.npy", second.astype(np.int32))
    cv2.imwrite(str(folder / "a.png"), np.zeros((96, 96, 3), np.uint8))  # the image itself, beside its masks
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([first, second]).astype(np.uint32), metadata={"axes": "TYX"})
    result = tmp_path / "result"
    result.mkdir()
    write_document(result / "output.json", document(traced(first), traced(second)))
    (result / "results.json").write_text('{"images": [{"file": "a.tif"}, {"file": "x/b.tif"}]}')
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps(as_coco(first, second)))
    kinds = [folder, tmp_path / "stack.tif", result, result / "output.json", coco]
    assert [sides.read(path).kind for path in kinds] == [
        *("folder of label images", "label image", "output.json", "output.json", "COCO")
    ]
    for pred in kinds:
        for true in kinds:
            found = comparison.compare(pred, true, [0.5, 1.0])
            assert [one.hits.tolist() for one in found.tallies] == [
                [len(np.unique(mask)) - 1] * 2 for mask in (first, second)
            ]
    assert comparison.compare(result, folder).names == ("a", "b")


def single_parts(labels: Labels) -> Labels:
    """Only the labels in one part: a document has one polygon per part."""
    parts = [value for value, _ in contours.polygons(labels)]
    return np.where(np.isin(labels, [value for value in parts if parts.count(value) == 1]), labels, 0).astype(np.uint16)


def as_coco(*images: Labels) -> dict[str, Any]:
    """Run-length encodings, column by column."""
    annotations = []
    for number, labels in enumerate(images, 1):
        for value in np.unique(labels[labels > 0]).tolist():
            flat = (labels == value).ravel(order="F")
            ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
            counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
            code = {"size": list(labels.shape), "counts": counts if counts[-1] else counts[:-1]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": code})
    shapes = [
        {"id": n, "height": one.shape[0], "width": one.shape[1], "file_name": f"{n}.png"}
        for n, one in enumerate(images, 1)
    ]
    return {"images": shapes, "annotations": annotations, "categories": [{"id": 1, "name": "Cell"}]}


def test_compressed_codes_are_those_of_pycocotools() -> None:
    from segserve.sides import coco

    mask = np.zeros((37, 53), np.uint8)
    mask[5:30, 3:9], mask[10:12, 20:50], mask[36, 52], mask[0, 0] = 1, 1, 1, 1
    text = "01c3h0iL000000000l<YOkC" + "0" * 57 + "T3O"
    found = coco._of_codes([(0, coco._Rle(text, (37, 53)))])[0]
    assert np.array_equal(runs.painted(found, mask.shape), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": [3, 5]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": "\x7f\x01"},
        {"size": [4, 4], "counts": "ooooooooooooo"},
        {"size": [1 << 80, 0], "counts": [0]},
        {"size": [1 << 20, 1 << 20], "counts": [0, 1 << 40]},
        {"size": [1 << 15, 1 << 15], "counts": [0, 1 << 30]},
        [[0, 0, 5, 0, 5]],
        [[0, 0, 1e300, 0, 5, 5]],
        "nonsense",
    ],
)
def test_hostile_coco_is_refused(tmp_path: Path, segmentation: Any) -> None:
    path = tmp_path / "coco.json"
    note = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    path.write_text(json.dumps({"images": [{"id": 1}], "annotations": [note]}))
    with pytest.raises(UsageError):
        comparison.compare(path, path)


def test_mutated_coco_is_read_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = as_coco(blobs(1, 3, 24))
    truth["annotations"].append({"id": 9, "image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "score": 0.5})
    text = json.dumps(truth).encode()
    splices = [b"1e400", b"-1", b"null", b"9" * 25, b"[[", b"NaN", b"1e9", b'"x"', b""]
    outcomes = set()
    for _ in range(400):
        at, length = int(random.integers(len(text))), int(random.integers(4))
        mutated = text[:at] + splices[random.integers(len(splices))] + text[at + length :]
        (tmp_path / "coco.json").write_bytes(mutated)
        try:
            comparison.compare(tmp_path / "coco.json", tmp_path / "coco.json", [0.5])
            outcomes.add("read")
        except (UsageError, OutputInvalid) as refused:
            outcomes.add(refused.code)
    assert outcomes >= {"read", "UsageError", "OutputInvalid"}


def test_coco_corners_become_centres(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[3:33, 5:25] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    ring = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[5, 3, 25, 3, 25, 33, 5, 33]], "score": 0.5}
    crowd = {**ring, "id": 2, "iscrowd": 1}
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": 7}], "annotations": [ring, crowd]}))
    found = comparison.compare(tmp_path / "coco.json", tmp_path / "mask.png")
    assert found.pooled.as_dict()["mean_ap"] == 1
    assert found.coco is not None
    assert found.coco.mean_ap == pytest.approx(1)  # pycocotools adds the smallest number to what it divides by
    assert any("crowd" in note for note in found.notes)


def test_coco_results_may_lack_images_without_objects(tmp_path: Path) -> None:
    truth = as_coco(blobs(1), blobs(2))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    kept = [{**note, "score": 0.5} for note in truth["annotations"] if note["image_id"] == 2]
    (tmp_path / "results.json").write_text(json.dumps(kept))
    found = comparison.compare(tmp_path / "results.json", tmp_path / "truth.json", [0.5])
    assert [int(one.hits[0]) for one in found.tallies] == [0, len(kept)]
    with pytest.raises(UsageError, match="results form"):
        comparison.compare(tmp_path / "truth.json", tmp_path / "results.json")


def test_names_decide_before_order(tmp_path: Path) -> None:
    for folder, names in (("pred", ("t2", "t10")), ("true", ("t10", "t2"))):
        (tmp_path / folder).mkdir()
        for name in names:
            mask = np.zeros((8, 8), np.uint8)
            mask[: int(name[1:]) % 7, :] = 1
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), mask)
    found = comparison.compare(tmp_path / "pred", tmp_path / "true")
    assert found.names == ("t2", "t10")
    assert found.pooled.as_dict()["mean_ap"] == 1
    assert found.notes == ()


def test_a_result_of_projections_keeps_its_names(tmp_path: Path) -> None:
    """`--z max`: results.json says z "max", which is no number."""
    labels = single_parts(blobs(1))
    write_document(tmp_path / "output.json", document(traced(labels), traced(labels)))
    images = [{"file": f"{name}.tif", "z": "max", "width": 96, "height": 96} for name in "ba"]
    (tmp_path / "results.json").write_text(json.dumps({"images": images}))
    found = comparison.compare(tmp_path, tmp_path)
    assert found.names == ("b z=max", "a z=max")


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    one = write_document(tmp_path / "one.json", document([box(0, 0, 3, 3)]))
    two = write_document(tmp_path / "two.json", document([box(0, 0, 3, 3)], []))
    with pytest.raises(UsageError, match=r"1 image.*2 images"):
        comparison.compare(one, two)


def test_unreadable_sides(tmp_path: Path) -> None:
    good = write_document(tmp_path / "good.json", document([box(0, 0, 3, 3)]))
    with pytest.raises(NotFound):
        comparison.compare(tmp_path / "absent.json", good)
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="colour"):
        comparison.compare(tmp_path / "colour.png", good)
    tifffile.imwrite(tmp_path / "floats.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(UsageError, match="float32"):
        comparison.compare(tmp_path / "floats.tif", good)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UsageError):
        comparison.compare(tmp_path / "pickled.npy", good)
    (tmp_path / "info.json").write_text('{"name": "x", "git_url": "u", "git_hash": "h", "type": "info"}')
    with pytest.raises(UsageError, match="describes an executor"):
        comparison.compare(tmp_path / "info.json", good)
    (tmp_path / "bad.json").write_text('{"model": "x"')
    with pytest.raises(OutputInvalid):
        comparison.compare(tmp_path / "bad.json", good)


def test_by_label_only_the_same_class_matches(tmp_path: Path) -> None:
    pred = write_document(tmp_path / "pred.json", document([box(0, 0, 3, 3)], scores=1.0, label="Cell"))
    true = write_document(tmp_path / "true.json", document([box(0, 0, 3, 3)], label="Debris"))
    assert comparison.compare(pred, true, [0.5]).pooled.hits.tolist() == [1]
    by_label = comparison.compare(pred, true, [0.5], by_label=True)
    assert by_label.pooled.hits.tolist() == [0]
    assert by_label.coco is not None
    assert by_label.coco.ap == (0.0,)


# ----------------------------------------------------------------------------------------------- the command


def test_thresholds_are_the_decimals_that_are_meant() -> None:
    assert (
        thresholds("0.5:0.95:0.05") == comparison.THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    )
    assert thresholds("0.9,0.5") == (0.5, 0.9)
    assert thresholds("1") == (1.0,)
    for bad in ("", "0", "1.1", "a", "0.5:0.9", "0.5:0.9:0", "0.9:0.5:0.1", "nan", "inf", "0:1:1e-300", "0.1:1:-0.1"):
        with pytest.raises(InvalidParameters, match="--iou"):
            thresholds(bad)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`segserve compare …` → (exit code, stdout, stderr)."""
    monkeypatch.setitem(cli.COMMANDS, "compare", "compare")

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main(["compare", *map(str, words)])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A prediction and the truth: the second image moved, an object missing."""
    first, second = blobs(1), blobs(2, 12)
    moved = np.roll(second, 1, 1)
    moved[moved == 3] = 0
    pred = write_document(tmp_path / "pred.json", document(traced(first), traced(moved), scores=0.5))
    return pred, write_document(tmp_path / "true.json", document(traced(first), traced(second)))


def test_command_text_json_csv(compare: Any, files: tuple[Path, Path]) -> None:
    code, text, _ = compare(*files)
    assert code == 0
    assert "2 image(s)" in text
    assert all(word in text for word in ("0.95", "PQ", "image 2", "COCO AP", "mean"))
    code, text, _ = compare(*files, "--json", "--iou", "0.5")
    document_ = json.loads(text)
    assert code == 0
    assert document_["images"][0]["at"][0]["ap"] == 1
    assert 0 < document_["images"][1]["at"][0]["ap"] < 1
    assert document_["coco"]["at"][0]["iou"] == 0.5
    _, text, _ = compare(*files, "--format", "csv", "--iou", "0.5,0.75")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == ["image 1", "image 1", "image 2", "image 2", "", ""]
    assert int(rows[4]["tp"]) == document_["pooled"]["at"][0]["tp"]


def test_command_without_objects(compare: Any, tmp_path: Path) -> None:
    empty = write_document(tmp_path / "empty.json", document([]))
    for words in (
        (),
        ("--json",),
        ("--format", "csv"),
        ("--drift",),
        ("--drift", "--format", "csv"),
        ("-o", tmp_path / "o"),
    ):
        code, text, _ = compare(empty, empty, *words)
        assert code == 0, words
        assert "nan" not in text.lower()
    assert (tmp_path / "o" / "001-image_1.png").exists()


def test_command_draws(compare: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        cv2.imwrite(str(images / f"{number}.png"), np.full((96, 96), 90 + number, np.uint8))
    code, _, said = compare(*files, "-o", tmp_path / "overlays", "--images", images)
    assert code == 0
    drawn = sorted((tmp_path / "overlays").iterdir())
    assert [path.name for path in drawn] == ["001-image_1.png", "002-image_2.png"]
    assert cv2.imread(str(drawn[1])).shape == (96, 96, 3)
    assert "green" in said
    code, _, said = compare(*files, "-o", tmp_path / "overlays", "--images", images / "0.png")
    assert code == 2
    assert "1 images" in said


def test_command_drift(compare: Any, files: tuple[Path, Path]) -> None:
    pred, true = files
    assert compare(true, true, "--drift")[0] == 0
    code, text, said = compare(pred, true, "--drift", "--json")
    assert code == 7
    assert "has changed" in said
    found = json.loads(text)
    assert [one["drift"] > 0 for one in found["images"]] == [False, True]
    assert found["drifted"]
    assert found["images"][0]["objects"] == []
    assert {one["status"] for one in found["images"][1]["objects"]} >= {"changed", "lost"}
    assert compare(pred, true, "--drift", "--threshold", "0.9")[0] == 0
    _, first, _ = compare(pred, true, "--drift", "--format", "csv")
    _, second, _ = compare(pred, true, "--drift", "--format", "csv")
    assert first == second
    for one, other in pairwise(row["image"] for row in csv.DictReader(io.StringIO(first))):
        assert one <= other


def test_command_refuses(compare: Any, files: tuple[Path, Path]) -> None:
    assert compare(*files, "--iou", "7")[0] == 2
    assert compare(*files, "--threshold", "0.1")[0] == 2
    assert compare(*files, "--images", files[0])[0] == 2
    assert compare(files[0], "absent.json")[0] == 2
