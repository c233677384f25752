"""The published data sets of CLIP_benchmark and its zero-shot metrics.

Facts, not code, of github.com/LAION-AI/CLIP_benchmark 1.6.2. The 41 names are those of its
benchmark/webdatasets.txt. The groups "natural", "specialized", "structured" (after VTAB, arXiv
1910.04867) and "retrieval" are the types of its benchmark/dataset_type.csv; "imagenet_robustness"
and "vtab" are collections of its clip_benchmark/datasets/builder.py. The layout is what its
webdataset_builder.py writes, the metrics are those of its clip_benchmark/metrics.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from tclip.data import SourceConfig
from tclip.data.captions import read_lines
from tclip.data.webdataset import WebDatasetSource, open_webdataset
from tclip.evals.classification import zeroshot_classification
from tclip.evals.embed import ImageEmbeddings, embed_images
from tclip.evals.metrics import average_precision
from tclip.evals.retrieval import every_caption, retrieval
from tclip.prompts import Encoder, class_embeddings

log = logging.getLogger(__name__)

_TYPES = {
    "natural": """
        imagenet1k imagenetv2 imagenet-r objectnet imagenet-a imagenet-o vtab/cifar10 vtab/cifar100
        vtab/flowers cars vtab/svhn fer2013 vtab/pets vtab/caltech101 voc2007_multilabel voc2007
        sun397 fgvc_aircraft country211 vtab/dtd gtsrb stl10""",
    "specialized": """
        imagenet_sketch mnist renderedsst2 vtab/diabetic_retinopathy vtab/eurosat vtab/resisc45
        vtab/pcam""",
    "structured": """
        vtab/clevr_count_all vtab/clevr_closest_object_distance vtab/dsprites_label_orientation
        vtab/dsprites_label_x_position vtab/dsprites_label_y_position
        vtab/smallnorb_label_elevation vtab/smallnorb_label_azimuth vtab/dmlab
        vtab/kitti_closest_vehicle_distance""",
    "retrieval": "mscoco_captions flickr8k flickr30k",
}
_COLLECTIONS = {
    "imagenet_robustness": "imagenetv2 imagenet_sketch imagenet-a imagenet-r objectnet",
    "vtab": """
        vtab/caltech101 vtab/cifar100 vtab/clevr_count_all vtab/clevr_closest_object_distance
        vtab/diabetic_retinopathy vtab/dmlab vtab/dsprites_label_orientation
        vtab/dsprites_label_x_position vtab/dtd vtab/eurosat vtab/kitti_closest_vehicle_distance
        vtab/flowers vtab/pets vtab/pcam vtab/resisc45 vtab/smallnorb_label_azimuth
        vtab/smallnorb_label_elevation sun397 vtab/svhn""",
}
# Every data set has one type and may be in several collections.
DATASETS = tuple(name for names in _TYPES.values() for name in names.split())
GROUPS = {group: tuple(names.split()) for group, names in (_TYPES | _COLLECTIONS).items()}


def find_datasets(root: Path) -> dict[str, Path]:
    """The folders of the data sets that stand under `root`, by name.

    vtab/cifar10, for example, is looked for as wds_vtab-cifar10, as it is published, wds_cifar10,
    and both without wds_, and vtab/cifar10.

    Raises:
      FileNotFoundError: there is no folder of any of them.
    """
    found = {}
    for name in DATASETS:
        stems = dict.fromkeys((name.replace("/", "-"), name.removeprefix("vtab/")))
        folders = (*(f"wds_{stem}" for stem in stems), *stems, name)
        folder = next((root / folder for folder in folders if (root / folder).is_dir()), None)
        if folder:
            found[name] = folder
    if not found:
        raise FileNotFoundError(
            f"no data set of CLIP_benchmark in {root}: expected folders such as wds_imagenet1k or "
            "wds_vtab-cifar10, as at https://huggingface.co/clip-benchmark"
        )
    _warn_of_others(root, set(found.values()))
    return found


def _warn_of_others(root: Path, known: set[Path]) -> None:
    """Names the folders of this layout that are none of the published data sets."""
    folders = {file.parents[1] for file in root.glob("*/*/nshards.txt")}
    if others := sorted(folder.name for folder in folders - known):
        log.warning(
            "%s: not measured, since no data set of CLIP_benchmark has the name: %s; evaluate one "
            "alone by --data=wds:%s",
            root,
            ", ".join(others),
            root / others[0],
        )


def open_dataset(name: str, folder: Path, cfg: SourceConfig) -> tuple[str, WebDatasetSource]:
    """Opens a data set by its folder.

    Args:
      cfg: split and data_dir count.

    Returns:
      A key of `TASKS` and the samples.

    Raises:
      FileNotFoundError: a file of the layout is missing.
      ValueError: the type of the data set is unknown, no sample can be used, or a label is beyond
        the class names.
    """
    kind_path = folder / "dataset_type.txt"
    kind = "".join(read_lines(kind_path)).lower() if kind_path.exists() else ""
    kind = kind or "classification"
    if kind not in TASKS:
        raise ValueError(f"{kind_path} holds {kind[:40]!r}; expected one of {', '.join(TASKS)}")
    if kind != "retrieval":
        for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file} is missing; {kind} needs it")
    source = open_webdataset(dataclasses.replace(cfg, source=f"wds:{folder}"), str(folder))
    if kind == "retrieval":
        # Without classes there are no captions made of them.
        return kind, dataclasses.replace(source, name=name, classnames=(), templates=())
    classes = len(source.classnames)
    if kind == "classification" and source.labels.max() >= classes:
        raise ValueError(
            f"labels go up to {source.labels.max()}, but {folder / 'classnames.txt'} names "
            f"{classes} classes"
        )
    return kind, dataclasses.replace(source, name=name)


def measure(
    model: Encoder, kind: str, source: WebDatasetSource, batch_size: int = 128, num_workers: int = 0
) -> dict[str, float]:
    """The metrics of CLIP_benchmark for a data set from `open_dataset`.

    Returns:
      acc1, acc5 (absent for fewer than five classes), mean_per_class_recall; or
      mean_average_precision; or image_retrieval_recall@1, text_retrieval_recall@1, @5 and @10
      (fractions). Also n, the images that took part, and skipped, the unusable samples.

    Raises:
      ValueError: nothing can be measured, or the model's embeddings are not finite.
    """
    images = embed_images(model, source, batch_size, num_workers)
    return TASKS[kind](model, source, images) | {"skipped": images.skipped}


def _classification(
    model: Encoder, source: WebDatasetSource, images: ImageEmbeddings
) -> dict[str, float]:
    scores = zeroshot_classification(model, source, images, ties="stable")
    names = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class", "n": "n"}
    if len(source.classnames) < 5:
        del names["acc5"]
    return {name: scores[own] for name, own in names.items()}


def _multilabel(
    model: Encoder, source: WebDatasetSource, images: ImageEmbeddings
) -> dict[str, float]:
    labels = [source[int(index)].labels for index in images.index_N]
    widths, classes = set(map(len, labels)), len(source.classnames)
    if widths != {classes}:
        raise ValueError(f"labels of {sorted(widths)} classes, but {classes} class names")
    classes_CxD = class_embeddings(model, source.classnames, source.templates)
    precision_C = average_precision(images.embeddings_NxD @ classes_CxD.T, np.array(labels))
    return {"mean_average_precision": float(precision_C.mean()), "n": len(labels)}


def _retrieval(
    model: Encoder, source: WebDatasetSource, images: ImageEmbeddings
) -> dict[str, float]:
    scores = retrieval(model, source, images, every_caption, "stable")
    recalls = {
        f"{what}_retrieval_recall@{k}": scores[f"{direction}_r{k}"]
        for what, direction in (("image", "t2i"), ("text", "i2t"))
        for k in (1, 5, 10)
    }
    return recalls | {"n": scores["n"]}


# By the words of dataset_type.txt.
TASKS = {"classification": _classification, "multilabel": _multilabel, "retrieval": _retrieval}
