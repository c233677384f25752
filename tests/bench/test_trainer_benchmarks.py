"""The benchmarks of the trainer run and are consistent with themselves."""

import pytest

from tclip.bench import input_wait, trainer_overhead

RECIPE = """
from tclip.config import to_dict
from tclip.run.experiment import default_config
from tclip.models import architecture

def get_config(arg):
    config = default_config()
    config.model = to_dict(architecture(arg))
    config.preprocess.image_size = config.model.vision.image_size
    config.train_data.source = config.eval.data.source = "shapes:tiny"
    config.train_data.data_dir = {data_dir!r}
    config.tokenizer.vocab_size = 560
    config.train.batch_size = 16
    return config
"""


def test_input_wait_is_a_share_of_the_steps_after_the_first_row(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(data_dir=str(tmp_path)))
    figures = input_wait.run(f"{recipe}:tiny", steps=20)
    assert 0 <= figures["input_wait"] <= figures["worst_input_wait"] <= 1
    assert (figures["steps"], figures["batch_size"]) == (20, 16)
    assert "worst tenth" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--steps=9: must be at least 10"):
        input_wait.run(f"{recipe}:tiny", steps=9)


def test_overhead_is_what_the_bare_step_does_not_need(capsys):
    figures = trainer_overhead.run("tiny", batch_size=16, steps=3, repeats=1)
    training, bare = (figures["seconds"][name] for name in ("training", "bare step"))
    assert figures["overhead"] == pytest.approx(1 - bare / training)
    assert figures["devices"] == 8
    assert "overhead" in capsys.readouterr().out
