"""What a training run is: one frozen dataclass, its ConfigDict for the command line, its file."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import ml_collections

from tclip.config import COUNT, NOT_NEGATIVE, Range, build, check_ranges, to_dict
from tclip.data import SourceConfig
from tclip.files import read_json_object, write_whole
from tclip.losses import LossConfig
from tclip.models import CLIPConfig, ClipPolicy, architecture
from tclip.parallel.sharding import MeshConfig
from tclip.processing import PreprocessConfig
from tclip.run.optim import OptimConfig, learning_rate

CONFIG_FILE = "config.json"
TOKENIZER_KINDS = ("auto", "train", "clip", "file")

# Keys that a resumed run may change, because parameters depend on them by no more than the order of
# sums. Everything else, train.steps included (the learning rate is a function of it), has to be
# what it was.
HARMLESS_KEYS = (
    "eval",
    "loss.chunk_size",
    "loss.negatives",
    "mesh",
    "optim.accumulate",
    "profile",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.best_metric",
    "train.max_bad_steps",
    "train_data.data_dir",
)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Where the tokenizer comes from.

    Attributes:
      kind: "train" (byte-pair encoding of the training captions), "clip" (CLIP's own merges),
        "file" (a tokenizer.json), or "auto": that of the model whose weights the run starts from,
        else the teacher's, else "train".
      path: of CLIP's bpe_simple_vocab_16e6.txt.gz for "clip", of tokenizer.json for "file".
      vocab_size: largest vocabulary of "train".
    """

    kind: str = "auto"
    path: str = ""
    vocab_size: Annotated[int, COUNT] = 1024

    def __post_init__(self):
        if self.kind not in TOKENIZER_KINDS:
            raise ValueError(f"tokenizer.kind={self.kind!r}: choose from {TOKENIZER_KINDS}")
        if self.kind in ("clip", "file") and not self.path:
            raise ValueError(f"tokenizer.kind={self.kind!r} needs tokenizer.path")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The frozen teacher.

    Attributes:
      path: a training workdir, a CLIP or SigLIP folder of Hugging Face, a CLIP folder of open_clip,
        or the id of one on the Hugging Face hub; "" for training without a teacher.
      cache: folder of launch.cache_teacher, to read its embeddings instead of running it; "" runs
        it.
    """

    path: str = ""
    cache: str = ""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: updates in all.
      batch_size: image-caption pairs a step, over all devices and micro-batches.
      log_every: steps between rows of metrics.
      eval_every: steps between evaluations, a multiple of checkpoint_every; the last step is always
        evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_last: newest checkpoints that are kept, beside the best.
      best_metric: metric of the evaluation whose largest value marks the best checkpoint.
      num_workers: worker processes of the input pipeline; 0 reads in the main process.
      max_bad_steps: steps in a row without a finite loss, gradient and update, each of which
        changes nothing, that end the run. During such a row nothing is saved but on a request to
        stop and after the last step.
    """

    steps: Annotated[int, COUNT] = 1000
    batch_size: Annotated[int, COUNT] = 256
    log_every: Annotated[int, COUNT] = 50
    eval_every: Annotated[int, COUNT] = 500
    checkpoint_every: Annotated[int, COUNT] = 500
    keep_last: Annotated[int, COUNT] = 2
    best_metric: str = "zeroshot_top1"
    num_workers: Annotated[int, NOT_NEGATIVE] = 0
    max_bad_steps: Annotated[int, COUNT] = 10

    def __post_init__(self):
        check_ranges(self, "train")
        if self.eval_every % self.checkpoint_every:
            raise ValueError(
                f"train.eval_every={self.eval_every} must be a multiple of "
                f"train.checkpoint_every={self.checkpoint_every}, so that the best can be kept"
            )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: zero-shot classification and retrieval, whichever the data allow.

    Attributes:
      data: what to evaluate on during training; a `source` of "" turns it off.
      batch_size: images at a time.
      num_workers: worker processes that read images.
    """

    data: SourceConfig = dataclasses.field(
        default_factory=lambda: SourceConfig(source="", split="validation")
    )
    batch_size: Annotated[int, COUNT] = 128
    num_workers: Annotated[int, NOT_NEGATIVE] = 0

    def __post_init__(self):
        check_ranges(self, "eval")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A trace for TensorBoard's profiler, of process 0, written to the workdir's profile/.

    Attributes:
      start: first step that is traced; 0 traces none.
      steps: how many steps are traced.
    """

    start: Annotated[int, NOT_NEGATIVE] = 0
    steps: Annotated[int, COUNT] = 5

    def __post_init__(self):
        check_ranges(self, "profile")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run. Without a teacher and with policy "none" it is plain float training.

    Attributes:
      init: the weights to start from. "auto": the teacher's if it has the architecture of `model`,
        else random ones; "random"; or a path or id as of a teacher ("teacher" for the teacher
        itself), whose architecture and pixels then replace those of `model` and `preprocess`.

    Raises:
      ValueError: groups that contradict each other.
    """

    # jax.random.key looks at no more bits.
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    init: str = "auto"
    model: CLIPConfig = dataclasses.field(default_factory=lambda: architecture("small-48"))
    train_data: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig("shapes"))
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    preprocess: PreprocessConfig = dataclasses.field(
        default_factory=lambda: PreprocessConfig(image_size=48)
    )
    quant: ClipPolicy = dataclasses.field(default_factory=ClipPolicy)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)

    def __post_init__(self):
        if self.preprocess.image_size != self.model.vision.image_size:
            raise ValueError(
                f"preprocess.image_size={self.preprocess.image_size} is not "
                f"model.vision.image_size={self.model.vision.image_size}"
            )
        if self.loss.needs_teacher and not self.teacher.path:
            raise ValueError(
                "the loss distils from a teacher: set teacher.path, or those weights to 0"
            )
        if self.init == "teacher" and not self.teacher.path:
            raise ValueError("init='teacher' needs teacher.path")
        if self.teacher.cache and not self.teacher.path:
            raise ValueError("teacher.cache needs teacher.path, to check whose embeddings they are")
        if self.teacher.cache and self.loss.hidden_weight > 0:
            raise ValueError("teacher.cache holds no hidden layers: set loss.hidden_weight to 0")
        if self.adopts_architecture and self.tokenizer.kind != "auto":
            raise ValueError(
                f"init={self.init!r} brings its own tokenizer: leave tokenizer.kind at 'auto'"
            )
        if not self.adopts_architecture:
            self.check_model()
        # Refuses a warm-up that is longer than training before any data is read.
        learning_rate(self.optim, self.train.steps)

    @property
    def adopts_architecture(self) -> bool:
        """Whether `model` gives way to the architecture of the model that `init` names."""
        return self.init not in ("auto", "random")

    def check_model(self) -> None:
        """Raises ValueError unless the loss can be computed for `model`, on the mesh."""
        check_hidden_layers(self.loss, "student", self.model)
        check_heads(self.mesh.tensor, "student", self.model)
        sigmoid = self.loss.contrastive == "sigmoid" and self.loss.contrastive_weight > 0
        if sigmoid and not self.model.logit_bias:
            raise ValueError("loss.contrastive='sigmoid' needs model.logit_bias=True")


def check_hidden_layers(loss: LossConfig, role: str, model: CLIPConfig) -> None:
    """Raises ValueError unless the model of "student" or "teacher" has the layers of the loss."""
    depths = {"image": model.vision.layers, "text": model.text.layers}
    for tower, pairs in loss.hidden_pairs.items():
        for pair in pairs:
            layer = pair[("student", "teacher").index(role)]
            if not 0 <= layer < depths[tower]:
                key = "hidden_layers" if tower == "image" else "text_hidden_layers"
                raise ValueError(
                    f"loss.{key}: the {role}'s {tower} tower has layers 0..{depths[tower] - 1}, "
                    f"no layer {layer}"
                )


def check_heads(tensor: int, role: str, model: CLIPConfig) -> None:
    """Raises ValueError unless `tensor` devices share the heads of each tower evenly.

    They would compute the same, but send queries, keys and values around anew in every layer.
    """
    image, text = model.vision.heads, model.text.heads
    most = math.gcd(image, text)
    if most % tensor:
        sizes = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
        raise ValueError(
            f"mesh.tensor={tensor} does not divide the heads of the {role}'s image tower, {image}, "
            f"and text tower, {text}: use one of {sizes}, and mesh.fsdp for more devices"
        )


def default_config() -> ml_collections.ConfigDict:
    """Returns every key with its default, locked: a misspelt key is an error that names a near one.

    Recipes in configs/ start from it.
    """
    return ml_collections.ConfigDict(to_dict(Experiment())).lock()


def experiment_from_config(config: ml_collections.ConfigDict) -> Experiment:
    """Returns the checked Experiment; raises ValueError naming the key that is wrong."""
    return build(Experiment, config.to_dict())


def write_experiment(experiment: Experiment, workdir: Path) -> None:
    """Writes config.json whole or not at all."""
    write_whole(workdir / CONFIG_FILE, json.dumps(to_dict(experiment), indent=2) + "\n")


def read_experiment(workdir: Path) -> Experiment:
    """Raises FileNotFoundError or ValueError naming the file when it is missing or damaged."""
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} is no training workdir: it has no {CONFIG_FILE}")
    return build(Experiment, read_json_object(path), where=str(path))


def check_resumable(saved: Experiment, wanted: Experiment, workdir: Path) -> None:
    """Raises ValueError, naming the key, if `wanted` would not continue the run of `saved`."""
    for key, (before, now) in differences(saved, wanted).items():
        if not any(key == name or key.startswith(name + ".") for name in HARMLESS_KEYS):
            raise ValueError(
                f"{workdir} holds a checkpoint of another experiment: {key} was {before!r} and is "
                f"now {now!r}; restore it, or use a new workdir"
            )


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Returns dotted key -> (value in `a`, value in `b`) where two configs of a kind differ."""
    flat_a, flat_b = _flatten(to_dict(a)), _flatten(to_dict(b))
    return {key: (flat_a[key], flat_b[key]) for key in flat_a if flat_a[key] != flat_b[key]}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
