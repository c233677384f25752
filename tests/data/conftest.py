"""What the tests of the data room share."""

import pytest

from tclip.data import SourceConfig, open_source
from tclip.processing import train_tokenizer


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A data_dir in which shapes:tiny is prepared."""
    path = tmp_path_factory.mktemp("shapes")
    open_source(SourceConfig("shapes:tiny", data_dir=str(path)))
    return str(path)


@pytest.fixture(scope="session")
def tiny_shapes(shapes_dir):
    """Opens a split of shapes:tiny."""
    return lambda split: open_source(SourceConfig("shapes:tiny", split, shapes_dir))


@pytest.fixture(scope="session")
def tokenizer(tiny_shapes):
    source = tiny_shapes("train")
    captions = [caption for i in range(100) for caption in source[i].captions]
    return train_tokenizer(captions, context_length=24, vocab_size=640)
