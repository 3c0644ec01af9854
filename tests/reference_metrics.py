"""Runs in an environment of its own: the numbers of cellpose.metrics, stardist.matching and pycocotools as JSON.

`python reference_metrics.py CASES.npz THRESHOLDS`: arrays `NAME_pred`, `NAME_true` (label images) and `NAME_scores`.
The packages' `__init__` import torch and TensorFlow, which the metrics do not use. Packages without their `__init__`
are put in place, so that the metrics' own files, unchanged, are imported without those.
"""

import contextlib
import importlib.util
import io
import json
import sys
import time
import types
import warnings

import numpy as np

PARTS = ("pred", "true", "scores", "pred_kinds", "true_kinds")


def without_init(package):
    module = types.ModuleType(package)
    module.__path__ = list(importlib.util.find_spec(package).submodule_search_locations)
    sys.modules[package] = module


for name in ("cellpose", "stardist"):
    without_init(name)

from cellpose import metrics
from pycocotools import mask as codes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from stardist import matching


def of_stardist(pred, true, thresholds):
    found = matching.matching(true, pred, thresh=thresholds)
    return [{key: float(value) for key, value in one._asdict().items() if key != "criterion"} for one in found]


def of_cellpose(pred, true, thresholds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ap, tp, fp, fn = metrics.average_precision(true, pred, threshold=list(thresholds))
        aji = float(metrics.aggregated_jaccard_index([true], [pred])[0]) if true.max() and pred.max() else None
    return {"ap": ap.tolist(), "tp": tp.tolist(), "fp": fp.tolist(), "fn": fn.tolist(), "aji": aji}


def values(labels):
    """One mask per label value, ascending; a stack of masks is one already."""
    return labels if labels.ndim == 3 else [labels == value for value in np.unique(labels[labels > 0])]


def of_coco(images, thresholds, most, first_id=1):
    """`images`: (pred, true, scores, pred classes, true classes) per image, in the order of `values`."""
    truth, found = [], []
    for number, (pred, true, scores, pred_classes, true_classes) in enumerate(images, 1):
        for mask, kind in zip(values(true), true_classes, strict=True):
            code = codes.encode(np.asfortranarray(mask).astype(np.uint8))
            common = {"image_id": number, "category_id": int(kind), "segmentation": code}
            truth.append({**common, "id": len(truth) + first_id, "area": float(codes.area(code)), "iscrowd": 0})
        for mask, score, kind in zip(values(pred), scores, pred_classes, strict=True):
            code = codes.encode(np.asfortranarray(mask).astype(np.uint8))
            found.append({"image_id": number, "category_id": int(kind), "segmentation": code, "score": float(score)})
    shapes = [{"id": n, "height": one[0].shape[-2], "width": one[0].shape[-1]} for n, one in enumerate(images, 1)]
    coco = COCO()
    kinds = sorted({note["category_id"] for note in truth + found})
    coco.dataset = {"images": shapes, "annotations": truth, "categories": [{"id": kind} for kind in kinds]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found), "segm")
        run.params.iouThrs, run.params.maxDets, run.params.areaRng = np.array(thresholds), [most], [[0, 1e10]]
        run.params.areaRngLbl = ["all"]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]  # (T, R, K, A, M), (T, K, A, M); -1: no truth

    def means(numbers):
        return [float(row[row > -1].mean()) for row in numbers.reshape(len(thresholds), -1)]

    return {"ap": means(precision), "recall": means(recall)}


def oddities():
    """What docs/compare.md says of the references."""
    full = np.arange(1, 5, dtype=np.int32).reshape(2, 2)
    nothing = np.zeros((2, 2), np.int32)
    square = np.zeros((8, 8), np.int32)
    square[2:5, 2:5] = 1
    box = [[3, 3, 7, 3, 7, 7, 3, 7], [10, 0, 20, 10, 10, 20, 0, 10]]
    image = [(square, square, [0.5], [1], [1])]
    return {
        "without_background": of_cellpose(full, full, [0.5]),
        "cellpose_empty": of_cellpose(nothing, nothing, [0.5])["ap"],
        "stardist_empty": of_stardist(nothing, nothing, [0.5])[0]["accuracy"],
        "id_from_0": of_coco(image, [0.5], 100, first_id=0)["ap"][0],
        "id_from_1": of_coco(image, [0.5], 100, first_id=1)["ap"][0],
        "areas": [int(codes.area(codes.frPyObjects([ring], 40, 40))[0]) for ring in box],
        "code": codes.encode(np.asfortranarray(square).astype(np.uint8))["counts"].decode(),
    }


def main():
    cases, thresholds = np.load(sys.argv[1]), json.loads(sys.argv[2])
    stack = "overlapping"
    names = sorted({key.removesuffix("_pred") for key in cases.files if key.endswith("_pred")} - {stack})
    answer = {"images": {}, "seconds": {}}
    ranked = []
    for name in names:
        pred, true = cases[name + "_pred"], cases[name + "_true"]
        start = time.perf_counter()
        found = of_stardist(pred, true, thresholds)
        answer["seconds"][name] = time.perf_counter() - start
        answer["images"][name] = {"stardist": found, "cellpose": of_cellpose(pred, true, thresholds)}
        ranked.append(tuple(cases[f"{name}_{part}"] for part in PARTS))
    pooled = matching.matching_dataset(
        [one[1] for one in ranked], [one[0] for one in ranked], thresh=thresholds, show_progress=False
    )
    answer["pooled"] = [{k: float(v) for k, v in one._asdict().items() if k != "criterion"} for one in pooled]
    answer["coco"] = {str(most): of_coco(ranked, thresholds, most) for most in (100, 10**6)}
    one_class = [(*one[:3], np.ones_like(one[3]), np.ones_like(one[4])) for one in ranked]
    answer["coco_one_class"] = of_coco(one_class, thresholds, 10**6)
    answer["coco_overlapping"] = of_coco([tuple(cases[f"{stack}_{part}"] for part in PARTS)], thresholds, 10**6)
    answer["oddities"] = oddities()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
