"""The frozen teacher: a float model that is run, or one whose embeddings were stored."""

import dataclasses

import jax
from jax.sharding import Mesh

from tclip.data import Mixture
from tclip.inference import Model
from tclip.loading import load
from tclip.model_kind import model_kind
from tclip.models import CLIPConfig, computed_as, with_layout
from tclip.parallel.processes import put_whole
from tclip.parallel.sharding import TENSOR, param_shardings, replicated
from tclip.processing import PreprocessConfig
from tclip.run.experiment import Experiment, check_heads, check_hidden_layers
from tclip.run.state import Params
from tclip.train.teacher_cache import CacheHeader, TeacherCache, open_cache


def load_teacher(experiment: Experiment) -> Model | None:
    """Returns the frozen teacher, to be computed as the student is; None for a run without one.

    Raises:
      ValueError: a packed model, or one that lacks a layer that the loss compares with.
      FileNotFoundError: it is not there.
    """
    if not experiment.teacher.path:
        return None
    teacher = load_float(experiment.teacher.path, experiment.model)
    check_hidden_layers(experiment.loss, "teacher", teacher.config)
    return teacher


def load_float(path: str, config: CLIPConfig) -> Model:
    """Loads a float model into host memory, to be computed as `config` says (dtype, scan, remat).

    Ternary weights of a run are floats of three values a group. They multiply activations that are
    not rounded, also those of a run with int8 activations.

    Raises:
      ValueError: it is packed, or cannot be read.
      FileNotFoundError: it is not there.
    """
    if model_kind(path) == "packed":
        raise ValueError(f"{path} is a packed model; give the workdir it was exported from")
    model = load(path, activations="native")
    config = computed_as(model.config, config)
    params = jax.device_get(with_layout(model.params, config))
    return dataclasses.replace(model, config=config, params=params)


def open_teacher_cache(
    experiment: Experiment, teacher: Model | None, data: Mixture
) -> TeacherCache | None:
    """Returns the cache that the experiment names, checked to be of its teacher and its data.

    Raises:
      ValueError, FileNotFoundError: as `tclip.train.teacher_cache.open_cache`.
    """
    if not experiment.teacher.cache or teacher is None:
        return None
    expected = cache_header(experiment, teacher, data, augmentations=1, shard_size=1)
    return open_cache(experiment.teacher.cache, expected)


def cache_header(
    experiment: Experiment, teacher: Model, data: Mixture, augmentations: int, shard_size: int
) -> CacheHeader:
    """What a cache of this teacher and these data is."""
    crops = teacher_crops(experiment, teacher)
    names = "train_scale", "train_ratio", "flip", "image_size", "mean", "std", "interpolation"
    return CacheHeader(
        teacher=teacher.fingerprint,
        data=data.fingerprint,
        samples=len(data),
        seed=experiment.seed,
        tokenizer=teacher.tokenizer.fingerprint,
        dtype=teacher.config.dtype,
        embed_dim=teacher.config.embed_dim,
        augmentations=augmentations,
        shard_size=shard_size,
        **{name: getattr(crops, name) for name in names},
    )


def teacher_crops(experiment: Experiment, teacher: Model) -> PreprocessConfig:
    """The teacher's pixels and the student's crops: they are drawn as in training."""
    names = "train_scale", "train_ratio", "flip"
    ranges = {name: getattr(experiment.preprocess, name) for name in names}
    return dataclasses.replace(teacher.preprocess, **ranges)


def put_teacher(teacher: Model | None, cache: TeacherCache | None, mesh: Mesh) -> Params | None:
    """Returns what the step needs of the teacher, on the mesh; with a cache its scalars.

    Raises:
      ValueError: the mesh does not divide its heads.
    """
    if teacher is None:
        return None
    params = teacher.params
    if cache is None:
        check_heads(mesh.shape[TENSOR], "teacher", teacher.config)
        return put_whole(params, param_shardings(params, mesh))
    scalars = {name: params[name] for name in ("logit_scale", "logit_bias") if name in params}
    return put_whole(scalars, dict.fromkeys(scalars, replicated(mesh)))
