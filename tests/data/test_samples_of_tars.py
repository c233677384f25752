"""Which members of tars are samples, whatever else people's archivers put between them."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclip.data import SourceConfig, open_source
from tclip.data.tar_index import INDEX, index_shard, open_index
from tclip.data.webdataset import WebDatasetSource, expand
from tclip.evals.clip_benchmark import find_datasets
from tclip.processing import BadSample
from tests.helpers.tars import pairs, png, write_tar

SAMPLES = [(f"{i}.png", f"{i}.txt", png(i), f"number {i}") for i in range(3)]
MEMBERS = [
    member
    for image, text, data, caption in SAMPLES
    for member in ((image, data), (text, caption.encode()))
]
OTHERS = (
    "._0.png",
    "0/._1.txt",
    "__MACOSX/._0.png",
    "__MACOSX/0.txt",
    ".DS_Store",
    "LICENSE",
    "LICENSE.txt",
    "README.md",
    "Thumbs.db",
    "sub/cover.png",
)


def indexed(folder, members) -> tuple[list[tuple[bytes, str]], int]:
    """Image and text of every sample of a shard, by the places in its index."""
    write_tar(folder / "a.tar", members)
    return read(folder / "a.tar")


def read(shard) -> tuple[list[tuple[bytes, str]], int]:
    data = shard.read_bytes()
    table, skipped, complaint = index_shard(str(shard))
    assert complaint == ""

    def part(row, name):
        offset, size = int(row[f"{name}_offset"]), abs(int(row[f"{name}_size"]))
        return data[offset : offset + size]

    return [(part(row, "image"), part(row, "text").decode()) for row in table], skipped


EXPECTED = [(data, caption) for _, _, data, caption in SAMPLES]


@given(st.lists(st.tuples(st.integers(0, len(MEMBERS)), st.sampled_from(OTHERS)), max_size=6))
def test_what_lies_between_loses_no_sample(tmp_path_factory, others):
    members = list(MEMBERS)
    for place, name in sorted(others, reverse=True):
        members.insert(place, (name, b"other"))
    found, _ = indexed(tmp_path_factory.mktemp("others"), members)
    assert found == EXPECTED


def test_hidden_files_are_not_counted_and_others_are(tmp_path):
    hidden = [(name, b"other") for name in OTHERS if "._" in name or "MACOSX" in name]
    assert indexed(tmp_path, [*hidden, *MEMBERS])[1] == 0
    assert indexed(tmp_path, [("LICENSE", b"other"), *MEMBERS])[1] == 1


IMAGE, TEXT = [("x.png", png(i)) for i in range(2)], [("x.txt", b"%d" % i) for i in range(2)]


@pytest.mark.parametrize("repeats", [2, 3])
def test_samples_of_one_key_in_a_row_stay_apart(tmp_path, repeats):
    shard = [IMAGE[0], TEXT[0], IMAGE[1], TEXT[1]] * repeats
    assert indexed(tmp_path, shard) == ([(png(0), "0"), (png(1), "1")] * repeats, 0)


@given(st.permutations([*IMAGE, *TEXT]))
def test_one_key_again_puts_no_caption_to_another_image(tmp_path_factory, shard):
    """An image has a text that is next to it, where every image of the key has one."""
    found, skipped = indexed(tmp_path_factory.mktemp("again"), shard)
    first, second = ({member[1] for member in shard[i : i + 2]} for i in (0, 2))
    are_pairs = all(len({name for name, _ in shard[i : i + 2]}) == 2 for i in (0, 2))
    assert len(found) == (2 if are_pairs else 0)
    assert (skipped > 0) != are_pairs
    for (image, text), neighbours in zip(found, (first, second), strict=False):
        assert {image, text.encode()} == neighbours


def test_what_was_left_out_stays_counted_when_its_key_comes_again(tmp_path):
    ambiguous = [IMAGE[0], IMAGE[1], TEXT[0], TEXT[1]]
    _, skipped = indexed(tmp_path, ambiguous)
    assert indexed(tmp_path, [*ambiguous, ("LICENSE", b"other"), IMAGE[1], TEXT[1]]) == (
        [(png(1), "1")],
        skipped + 1,
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=4))
def test_tars_one_after_the_other_are_read_as_one(tmp_path_factory, parts):
    """Each with so many samples and blocks of zeros behind it."""
    folder = tmp_path_factory.mktemp("concatenated")
    data, expected = b"", []
    for number, (count, blocks) in enumerate(parts):
        keys = range(10 * number, 10 * number + count)
        write_tar(folder / "part.tar", pairs(keys))
        data += (folder / "part.tar").read_bytes() + bytes(512 * blocks)
        expected += [f"number {key}\n\n  again {key} \n" for key in keys]
    (folder / "all.tar").write_bytes(data)
    found, skipped = read(folder / "all.tar")
    assert ([text for _, text in found], skipped) == (expected, 0)


def test_what_follows_a_tar_and_is_none_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(2)))
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(b"something else" * 100)
    table, _, complaint = index_shard(str(tmp_path / "a.tar"))
    assert len(table) == 2
    assert complaint


def opened(folder, pattern="*.tar", **options) -> WebDatasetSource:
    data_dir = str(folder / "cache")
    return open_source(SourceConfig(f"wds:{folder}/{pattern}", data_dir=data_dir, **options))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif", "JFIF"])
def test_every_suffix_that_the_decoder_reads(tmp_path, suffix):
    write_tar(tmp_path / "a.tar", [(f"x.{suffix}", png(0)), ("x.txt", b"a caption")])
    assert opened(tmp_path)[0].captions == ("a caption",)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ({"caption": "a dog", "url": "x"}, ("a dog",)),
        ({"caption": ["a dog", " a cat "]}, ("a dog", "a cat")),
        ({"caption": "Häuschen 犬"}, ("Häuschen 犬",)),
        ({"caption": "two\nlines"}, ("two\nlines",)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_in_json(tmp_path, value, captions, encoding):
    data = json.dumps(value, ensure_ascii=False).encode(encoding)
    write_tar(tmp_path / "a.tar", [("x.jpg", png(0)), ("x.json", data)])
    assert opened(tmp_path)[0].captions == captions


@pytest.mark.parametrize(
    "data", [b"{}", b'{"caption": null}', b'{"caption": 3}', b"[1]", b"{", b"[" * 10**5, b"\xff{}"]
)
def test_json_without_a_caption_is_left_out_and_counted(tmp_path, data):
    write_tar(tmp_path / "a.tar", [*pairs([0]), ("x.jpg", png(0)), ("x.json", data)])
    source = opened(tmp_path)
    assert (len(source), source.left_out) == (1, 1)


def test_a_caption_beside_json_is_the_caption(tmp_path):
    members = [("x.jpg", png(0)), ("x.json", b'{"caption": "b"}'), ("x.txt", b"a")]
    write_tar(tmp_path / "a.tar", members)
    assert opened(tmp_path)[0].captions == ("a",)
    assert (open_index(opened(tmp_path).index_path)["text_size"] == 1).all()


def test_a_caption_in_no_known_encoding_is_a_bad_sample(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", png(0)), ("x.txt", "café".encode("latin-1"))])
    with pytest.raises(BadSample, match=r"a\.tar, the text of x: "):
        opened(tmp_path)[0]


@pytest.mark.parametrize(("lines", "captions"), [(True, ("one", "two")), (False, ("one two",))])
def test_lines_are_captions_or_one_caption(tmp_path, lines, captions):
    write_tar(tmp_path / "a.tar", [("x.png", png(0)), ("x.txt", b"one\n\n two \n")])
    source = opened(tmp_path, caption_lines=lines)
    assert source[0].captions == captions


def test_whether_lines_are_captions_is_of_the_data(tmp_path):
    write_tar(tmp_path / "a.tar", pairs([0]))
    one, many = (opened(tmp_path, caption_lines=value).fingerprint for value in (False, True))
    assert one != many


def test_without_a_sample_the_suffixes_that_were_found_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.tiff", b"1"), ("x.txt", b"a"), ("y.tiff", b"2")])
    with pytest.raises(ValueError, match=r"next to it.*found 2 x \.tiff, 1 x \.txt"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["a[1].tar", "a*.tar", "a?.tar", "{a,b}.tar", "{1..3}.tar"])
def test_a_path_that_exists_is_a_file_and_no_pattern(tmp_path, name):
    for file in ("a1.tar", "ab.tar", name):
        (tmp_path / file).touch()
    assert expand(f"{tmp_path}/{name}") == (str(tmp_path / name),)
    folder = tmp_path / "x[1]"
    folder.mkdir()
    (folder / "0.tar").touch()
    assert expand(f"{folder}/0.tar") == (f"{folder}/0.tar",)


def test_indices_by_other_rules_are_not_used(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", pairs([0]))
    first = opened(tmp_path).index_path
    monkeypatch.setattr("tclip.data.tar_index.RULES", 0)
    assert opened(tmp_path).index_path != first
    assert INDEX.itemsize == 32


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "set"
    (folder / "test").mkdir(parents=True)
    (folder / "test/nshards.txt").write_text("\ufeff1\n")
    (folder / "classnames.txt").write_text("\ufeffcat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\ufeffa {c}.\n\n{c}\n")
    write_tar(folder / "test/0.tar", [("x.png", png(0)), ("x.cls", b"1")])
    return folder


def open_benchmark(folder):
    cfg = SourceConfig(f"wds:{folder}", "test", str(folder.parent / "cache"))
    return open_source(cfg)


def test_byte_order_marks_belong_to_no_name(benchmark):
    source = open_benchmark(benchmark)
    assert source.classnames == ("cat", "dog")
    assert source.templates == ("a {}.", "{}")


@pytest.mark.parametrize("file", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_a_file_in_no_known_encoding_is_named(benchmark, file):
    (benchmark / file).write_bytes("café {c}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file}: .*UTF-8"):
        open_benchmark(benchmark)


@pytest.mark.parametrize("template", ["a photo.", "a {classname}.", "a %s.", "a {C}."])
def test_a_template_without_the_class_is_named(benchmark, template):
    (benchmark / "zeroshot_classification_templates.txt").write_text(f"a {{c}}.\n{template}\n")
    with pytest.raises(ValueError, match=r"templates\.txt, line 2: .*no \{c\}"):
        open_benchmark(benchmark)


def test_folders_of_unknown_names_are_said(tmp_path, caplog):
    for name in ("wds_mnist", "wds_food101", "mine", "no_dataset"):
        (tmp_path / name / "test").mkdir(parents=True)
        if name != "no_dataset":
            (tmp_path / name / "test/nshards.txt").write_text("1")
    with caplog.at_level(logging.WARNING, "tclip"):
        assert list(find_datasets(tmp_path)) == ["mnist"]
    (record,) = caplog.records
    assert "mine, wds_food101" in record.message
    assert "no_dataset" not in record.message
