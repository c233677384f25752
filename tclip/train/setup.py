"""What is settled before the first step: teacher, first weights, tokenizer, which data."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from tclip.data import Mixture, open_mixture
from tclip.files import read_json_object, write_whole
from tclip.inference import Model
from tclip.models import RUNTIME_KEYS, CLIPConfig, computed_as
from tclip.packed import PREPROCESSOR, TOKENIZER
from tclip.parallel.processes import is_main, main_first
from tclip.processing import (
    BadSample,
    PreprocessConfig,
    Tokenizer,
    clip_tokenizer,
    load_tokenizer,
    save_preprocess,
    train_tokenizer,
)
from tclip.run.experiment import Experiment, differences, write_experiment
from tclip.run.state import Params
from tclip.train.teacher import load_float, load_teacher, open_teacher_cache
from tclip.train.teacher_cache import TeacherCache

IDENTITY_FILE = "identity.json"
# Samples whose captions train a tokenizer: more hardly change it.
TOKENIZER_SAMPLES = 20_000
PIXEL_KEYS = ("image_size", "mean", "std", "interpolation", "resize")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """What training begins or goes on with.

    Attributes:
      experiment: with the architecture and the vocabulary that it really has.
      teacher: in host memory, or None.
      cache: the teacher's stored embeddings, where they are used instead of running it.
      start: parameters in host memory to start from; None for random ones, and in a continued run.
    """

    experiment: Experiment
    data: Mixture
    tokenizer: Tokenizer
    teacher: Model | None
    cache: TeacherCache | None
    start: Params | None


def set_up_run(experiment: Experiment, workdir: Path, is_resumed: bool) -> RunSetup:
    """Finds everything that a run needs, and writes what tells it from others into its workdir.

    Of several processes the first prepares data, tokenizer and workdir, the others find them there.

    Args:
      is_resumed: whether the run goes on from a checkpoint in `workdir`; the same in all processes.

    Raises:
      ValueError, FileNotFoundError: the data, the teacher, the weights to start from or the
        tokenizer are missing, damaged, or do not fit together.
    """
    # Models first: a missing one is noticed before data are prepared.
    teacher = load_teacher(experiment)
    named = None if is_resumed else load_named_start(experiment, teacher)
    with main_first("training data"):
        data = open_mixture(experiment.train_data)
    if named is not None:
        experiment = adopt(experiment, named.config, named.preprocess)
    cache = open_teacher_cache(experiment, teacher, data)
    identity = _identity(data, teacher)
    with main_first("workdir"):
        experiment, tokenizer = prepare_workdir(
            experiment, workdir, is_resumed, data, identity, named or teacher
        )
    start = None if is_resumed else first_weights(experiment, tokenizer, named, teacher)
    return RunSetup(experiment, data, tokenizer, teacher, cache, start)


def load_named_start(experiment: Experiment, teacher: Model | None) -> Model | None:
    """Returns the model that `init` names; None for "auto" and "random".

    Raises:
      ValueError, FileNotFoundError: it cannot be read.
    """
    if not experiment.adopts_architecture:
        return None
    return (
        teacher if experiment.init == "teacher" else load_float(experiment.init, experiment.model)
    )


def adopt(experiment: Experiment, config: CLIPConfig, pixels: PreprocessConfig) -> Experiment:
    """Gives the student another model's architecture and pixels; how it is computed stays."""
    model = computed_as(config, experiment.model)
    preprocess = dataclasses.replace(
        experiment.preprocess, **{key: getattr(pixels, key) for key in PIXEL_KEYS}
    )
    experiment = dataclasses.replace(experiment, model=model, preprocess=preprocess)
    experiment.check_model()
    return experiment


def continue_as(saved: Experiment, experiment: Experiment) -> Experiment:
    """Fills in what the beginning of a run has settled: an architecture, or its vocabulary."""
    if experiment.adopts_architecture:
        return adopt(experiment, saved.model, saved.preprocess)
    text = saved.model.text
    return with_vocabulary(experiment, text.vocab_size, text.eot_token_id)


def prepare_workdir(
    experiment: Experiment,
    workdir: Path,
    is_resumed: bool,
    data: Mixture,
    identity: dict[str, str | int],
    origin: Model | None,
) -> tuple[Experiment, Tokenizer]:
    """Writes config, tokenizer, preprocessing and the identity of data and teacher.

    Args:
      identity: of what the run learns from.
      origin: the model whose tokenizer the student takes if its config does not ask for another.

    Returns:
      The experiment with its vocabulary, and the tokenizer; a continued run keeps its own.

    Raises:
      ValueError: a continued run whose data or teacher are not what they were, or a process whose
        data or teacher are not those of the first.
    """
    path = workdir / TOKENIZER
    if is_main() and not is_resumed:
        tokenizer = make_tokenizer(experiment, data, origin)
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
        save_preprocess(experiment.preprocess, workdir / PREPROCESSOR)
        write_whole(workdir / IDENTITY_FILE, json.dumps(identity, indent=2) + "\n")
    else:
        _check_identity(workdir, identity)
        tokenizer = load_tokenizer(path, experiment.model.text.context_length)
    if not is_resumed:
        experiment = with_vocabulary(experiment, *_vocabulary(experiment, tokenizer, origin))
    if is_main():
        write_experiment(experiment, workdir)
    return experiment, tokenizer


def make_tokenizer(experiment: Experiment, data: Mixture, origin: Model | None) -> Tokenizer:
    """Returns the tokenizer that the config describes."""
    context_length = experiment.model.text.context_length
    if origin is not None and takes_tokenizer_of_origin(experiment):
        return dataclasses.replace(origin.tokenizer, context_length=context_length)
    given, size = read_tokenizer(experiment), experiment.tokenizer.vocab_size
    return given or train_tokenizer(captions_of(data), context_length, size)


def takes_tokenizer_of_origin(experiment: Experiment) -> bool:
    """Whether the student has the tokenizer of the model that it starts from or learns from, if
    there is one."""
    return experiment.tokenizer.kind == "auto"


def read_tokenizer(experiment: Experiment) -> Tokenizer | None:
    """Returns the tokenizer in the file that the config names, if it names one.

    Raises:
      ValueError, FileNotFoundError: it cannot be read.
    """
    config, context_length = experiment.tokenizer, experiment.model.text.context_length
    if config.kind == "clip":
        return clip_tokenizer(config.path, context_length)
    if config.kind == "file":
        return load_tokenizer(config.path, context_length)
    return None


def captions_of(data: Mixture) -> Iterator[str]:
    """Yields captions to train a tokenizer, of each source its share; bad samples have none."""
    for source, weight in zip(data.sources, data.weights, strict=True):
        share = math.ceil(TOKENIZER_SAMPLES * weight / sum(data.weights))
        for index in range(min(len(source), share)):
            try:
                yield from source[index].captions
            except BadSample:
                continue


def with_vocabulary(experiment: Experiment, vocab_size: int, eot_token_id: int) -> Experiment:
    """Returns the experiment with the text tower made for this vocabulary."""
    text = dataclasses.replace(
        experiment.model.text, vocab_size=vocab_size, eot_token_id=eot_token_id
    )
    model = dataclasses.replace(experiment.model, text=text)
    return dataclasses.replace(experiment, model=model)


def first_weights(
    experiment: Experiment, tokenizer: Tokenizer, named: Model | None, teacher: Model | None
) -> Params | None:
    """Returns the parameters that the student starts from, and says which; None for random ones."""
    if named is not None:
        logger.info("the student starts from the weights of %s", experiment.init)
        return named.params
    if experiment.init == "random" or teacher is None:
        return None
    reason = random_start(experiment, tokenizer, teacher)
    origin = f"random weights: {reason}" if reason else "the teacher's weights"
    logger.info("the student starts from %s", origin)
    return None if reason else teacher.params


def random_start(experiment: Experiment, tokenizer: Tokenizer, teacher: Model | None) -> str:
    """Says why a student with init="auto" starts from random weights; "" if from its teacher's."""
    if teacher is None:
        return "there is no teacher"
    for key in differences(experiment.model, teacher.config):
        if key not in RUNTIME_KEYS:
            return f"model.{key} differs"
    if tokenizer.fingerprint != teacher.tokenizer.fingerprint:
        return "the tokenizer differs"
    return ""


def _vocabulary(
    experiment: Experiment, tokenizer: Tokenizer, origin: Model | None
) -> tuple[int, int]:
    """Size and end-of-text token: those of the tokenizer, or of the model that it comes from, whose
    table may have more rows."""
    if origin is not None and takes_tokenizer_of_origin(experiment):
        return origin.config.text.vocab_size, origin.config.text.eot_token_id
    return tokenizer.vocab_size, tokenizer.eot_token_id


def _identity(data: Mixture, teacher: Model | None) -> dict[str, str | int]:
    """What a run learns from; a run that goes on with something else would be another run."""
    return {
        "data": data.fingerprint,
        "samples": len(data),
        "teacher": "" if teacher is None else teacher.fingerprint,
    }


def _check_identity(workdir: Path, identity: dict[str, str | int]) -> None:
    saved = read_json_object(workdir / IDENTITY_FILE)
    changed = [key for key, value in identity.items() if saved.get(key) != value]
    if changed:
        raise ValueError(
            f"{workdir}: {' and '.join(changed)} changed since the run began (see {IDENTITY_FILE} "
            "there); restore what was, or use a new workdir"
        )
