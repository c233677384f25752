"""Which architectures a run has, where the models that its config names need not be at hand."""

import dataclasses
from pathlib import Path

from tclip.interop import read_architecture
from tclip.model_kind import model_kind
from tclip.models import CLIPConfig, architecture, computed_as
from tclip.run.experiment import Experiment, check_hidden_layers, read_experiment
from tclip.train.setup import adopt, read_tokenizer, takes_tokenizer_of_origin, with_vocabulary


@dataclasses.dataclass(frozen=True)
class PlannedModels:
    """Attributes: experiment: with the student's architecture; teacher: its, or None; notes: what
    had to be assumed, for people."""

    experiment: Experiment
    teacher: CLIPConfig | None
    notes: tuple[str, ...] = ()


def settle_models(experiment: Experiment, teacher_arch: str = "") -> PlannedModels:
    """Finds the architectures of teacher and student without reading weights or the network.

    Args:
      teacher_arch: name of the teacher's architecture; "" to read it from teacher.path, which then
        has to be a folder.

    Raises:
      ValueError: an unknown architecture, none is given and there is no folder, or one for which
        the loss cannot be computed; a file of tokenizer.path that is no tokenizer.
    """
    teacher, named, notes = None, None, []
    if experiment.teacher.path:
        teacher = computed_as(_teacher(experiment, teacher_arch), experiment.model)
        check_hidden_layers(experiment.loss, "teacher", teacher)
    elif teacher_arch:
        raise ValueError(f"--teacher_arch={teacher_arch}: the config has no teacher.path")
    if experiment.adopts_architecture:
        named = teacher if experiment.init == "teacher" else _in_folder(experiment.init)
        if named is None:
            notes.append(
                f"init={experiment.init!r} is no folder here: the student is taken to be "
                "config.model"
            )
        else:
            size = named.vision.image_size
            pixels = dataclasses.replace(experiment.preprocess, image_size=size)
            experiment = adopt(experiment, named, pixels)
    if named is not None or not experiment.adopts_architecture:
        experiment, note = _with_vocabulary(experiment, named or teacher)
        notes += [note] if note else []
    return PlannedModels(experiment, teacher, tuple(notes))


def _with_vocabulary(experiment: Experiment, origin: CLIPConfig | None) -> tuple[Experiment, str]:
    """Gives the student the vocabulary that it has in training, as far as it is known, and a note.

    Args:
      origin: what it starts from or learns from.
    """
    if origin is not None and takes_tokenizer_of_origin(experiment):
        return with_vocabulary(experiment, origin.text.vocab_size, origin.text.eot_token_id), ""
    try:
        tokenizer = read_tokenizer(experiment)
    except FileNotFoundError as error:
        return experiment, f"{error}; the vocabulary is taken to be that of config.model"
    if tokenizer is not None:
        return with_vocabulary(experiment, tokenizer.vocab_size, tokenizer.eot_token_id), ""
    size = experiment.tokenizer.vocab_size
    note = f"the tokenizer to be trained is taken to have all tokenizer.vocab_size={size} entries"
    return with_vocabulary(experiment, size, size - 1), note


def _teacher(experiment: Experiment, name: str) -> CLIPConfig:
    if name:
        return architecture(name)
    found = _in_folder(experiment.teacher.path)
    if found is None:
        raise ValueError(
            f"teacher.path={experiment.teacher.path!r} is no folder here: name its architecture by "
            "--teacher_arch, for instance --teacher_arch=ViT-L/14"
        )
    return found


def _in_folder(path: str) -> CLIPConfig | None:
    """The architecture of a workdir or of a folder of Hugging Face or open_clip, else None."""
    if not Path(path).is_dir():
        return None
    if model_kind(path) == "workdir":
        return read_experiment(Path(path)).model
    return read_architecture(Path(path))
