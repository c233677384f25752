"""Tar shards against a re-read by tarfile, and every way in which they can be wrong."""

import io
import json
import logging
import pickle
import pwd
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tclip.data import SourceConfig, View, open_source, train_batches
from tclip.data.webdataset import expand
from tclip.processing import BadSample, PreprocessConfig, decode_image
from tests.helpers.tars import pairs, png, write_tar

SHARED = Path(__file__).parents[3] / "shared/data"
needs_shards = pytest.mark.skipif(
    not (SHARED / "cifar10_train").exists(), reason=f"{SHARED}/cifar10_train is absent"
)
needs_benchmark = pytest.mark.skipif(
    not (SHARED / "wds_cifar10").exists(), reason=f"{SHARED}/wds_cifar10 is absent"
)


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard:05}.tar", pairs(range(10 * shard, 10 * shard + 10)))
    return tmp_path


def wds(folder, pattern="*.tar", **options):
    cfg = SourceConfig(f"wds:{folder}/{pattern}", data_dir=str(folder / "cache"), **options)
    return open_source(cfg)


@pytest.mark.parametrize("pattern", ["*.tar", "{00000..00002}.tar", "0000{0,1,2}.tar"])
def test_every_sample_in_order(folder, pattern):
    source = wds(folder, pattern)
    assert len(source) == 30
    for i in (29, 0, 10, 9):
        sample = source[i]
        assert sample.key == f"{i // 10:05}.tar/{i:05}"
        assert sample.image == png(i)
        assert sample.captions == (f"number {i}", f"again {i}")
        assert sample.label == -1
    with pytest.raises(IndexError):
        source[30]


@needs_shards
def test_real_shards_equal_a_reread_by_tarfile(tmp_path):
    cfg = SourceConfig(f"wds:{SHARED}/cifar10_train/{{00003..00004}}.tar", data_dir=str(tmp_path))
    source = open_source(cfg)
    assert len(source) == 10_000
    with tarfile.open(SHARED / "cifar10_train/00004.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        for row in (0, 17, 4999):
            sample = source[5000 + row]
            assert sample.key == f"00004.tar/{names[row][:-4]}"
            assert sample.image == tar.extractfile(names[row]).read()
            caption = tar.extractfile(names[row][:-4] + ".txt").read().decode().strip()
            assert sample.captions == (caption,)
            assert decode_image(sample.image).size == (32, 32)


@needs_benchmark
def test_clip_benchmark_layout(tmp_path):
    cfg = SourceConfig(f"wds:{SHARED}/wds_cifar10", split="test", data_dir=str(tmp_path))
    source = open_source(cfg)
    assert len(source) == 10_000
    assert source.classnames[:2] == ("airplane", "automobile")
    assert source.templates[0] == "a photo of a {}."
    labels = [source[i].label for i in range(0, 10_000, 50)]
    with tarfile.open(SHARED / "wds_cifar10/test/0.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".cls")]
        expected = [int(tar.extractfile(members[i]).read()) for i in range(0, 10_000, 50)]
    assert labels == expected
    assert source[0].captions[0] == f"a photo of a {source.classnames[labels[0]]}."


def write_benchmark(folder, labels):
    (folder / "test").mkdir(parents=True)
    (folder / "test/nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("cat\nhot {dog}\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} here.\n{c}\n")
    members = []
    for i, label in enumerate(labels):
        members += [(f"s{i}.cls", str(label).encode()), (f"s{i}.webp", png(i))]
    write_tar(folder / "test/0.tar", members)


def test_small_benchmark_folder_and_its_faults(tmp_path):
    write_benchmark(tmp_path / "set", [1, 0, 2])
    cfg = SourceConfig(f"wds:{tmp_path}/set", "test", str(tmp_path / "cache"))
    source = open_source(cfg)
    assert source[0].captions == ("a hot {dog} here.", "hot {dog}")
    assert [source[0].label, source[1].label] == [1, 0]
    with pytest.raises(BadSample, match="label 2 of 2 classes"):
        source[2]
    with pytest.raises(FileNotFoundError, match=r"splits found: test"):
        open_source(SourceConfig(f"wds:{tmp_path}/set", "train", str(tmp_path / "cache")))
    (tmp_path / "set/test/nshards.txt").write_text("2")
    with pytest.raises(FileNotFoundError, match=r"1\.tar is missing"):
        open_source(cfg)
    (tmp_path / "set/test/nshards.txt").write_text("many")
    with pytest.raises(ValueError, match="does not hold a number"):
        open_source(cfg)


def npy(values, **options):
    out = io.BytesIO()
    np.save(out, np.array(values, **options))
    return out.getvalue()


def test_labels_of_several_classes_and_an_empty_class_name(tmp_path):
    write_benchmark(tmp_path / "set", [])
    (tmp_path / "set/classnames.txt").write_text("cat\n\nhot dog\n")
    members = [
        *[("0.png", png(0)), ("0.npy", npy([1, 0, 1], dtype=np.float32))],
        *[("1.png", png(1)), ("1.npy", npy([2, 0, 1]))],
        *[("2.png", png(2)), ("2.npy", npy([None, 1], dtype=object))],
        *[("3.png", png(3)), ("3.npy", b"\x93NUMPY\x01\0 cut")],
        *[("4.png", png(4)), ("4.cls", b"1"), ("4.npy", npy([0.5]))],
        *[("5.png", png(5)), ("5.cls", b"2")],
    ]
    write_tar(tmp_path / "set/test/0.tar", members)
    cfg = SourceConfig(f"wds:{tmp_path}/set", "test", str(tmp_path / "cache"))
    source = open_source(cfg)
    assert source.classnames == ("cat", "", "hot dog")
    assert source.labels.tolist() == [-1, -1, -1, -1, 1, 2]
    assert (source[0].labels, source[0].captions) == ((1, 0, 1), ())
    assert source[5].captions == ("a hot dog here.", "hot dog")
    assert (source[4].labels, source[4].captions) == ((), ("a  here.", ""))
    with pytest.raises(BadSample, match=r"1\.npy is not a 0 or 1 for each class"):
        source[1]
    for damaged in (2, 3):
        with pytest.raises(BadSample, match=rf"{damaged}\.npy: "):
            source[damaged]


def test_unpaired_and_foreign_members_are_left_out_and_counted(tmp_path, caplog):
    members = [
        *pairs([0]),
        ("00001.png", png(1)),
        ("00002.txt", b"no image"),
        ("00003.png", png(3)),
        ("00003.txt", b""),
        ("sub/00004.JPG", png(4)),
        ("sub/00004.txt", b"upper case suffix"),
        ("00005.jpg", png(5)),
        ("00005.cls", b"not a number"),
        ("README", b"hello"),
        *pairs([6]),
    ]
    write_tar(tmp_path / "a.tar", members)
    with caplog.at_level(logging.WARNING, "tclip"):
        source = wds(tmp_path)
    assert [source[i].captions[0] for i in range(len(source))] == [
        "number 0",
        "upper case suffix",
        "number 6",
    ]
    assert "5 samples" in caplog.text
    assert source.left_out == 5
    (report,) = (tmp_path / "cache/index").glob("*.json")
    assert json.loads(report.read_text())["skipped"] == 5
    report.unlink()
    assert wds(tmp_path).left_out == 5


def test_links_and_folders_are_never_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in (("x.txt", b"link"), ("../../y.png", png(1)), ("../../y.txt", b"up")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = wds(tmp_path)
    assert [source[i].captions for i in range(len(source))] == [("up",)]


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_indexed(tmp_path, fmt):
    key = "folder/" * 30 + "k"
    write_tar(tmp_path / "a.tar", [(f"{key}.png", png(1)), (f"{key}.txt", b"x")], format=fmt)
    source = wds(tmp_path)
    assert source[0].image == png(1)
    assert source[0].captions == ("x",)


def test_cut_shard_is_named_at_every_opening(folder, caplog):
    path = folder / "00001.tar"
    # The picture of sample 12 is there, its caption is not.
    path.write_bytes(path.read_bytes().split(b"00012.txt")[0])
    expected = f"{path}: no end-of-archive mark; its first 2 samples are used"
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "tclip"):
            source = wds(folder)
        assert (len(source), source.left_out) == (22, 1)
        assert source[21].captions[0] == "number 29"
        (record,) = caplog.records
        assert expected in record.message
        assert "1 samples without" in record.message
        caplog.clear()


def test_shard_cut_after_indexing_gives_bad_samples(folder):
    source = wds(folder)
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadSample, match=r"00000\.tar.*cut after"):
        source[9]
    path.unlink()
    with pytest.raises(BadSample, match=r"00000\.tar"):
        source[0]


def test_shard_lost_in_training_ends_in_an_error_that_names_it(folder, tokenizer):
    view = View(PreprocessConfig(image_size=16), tokenizer)
    iterator = iter(train_batches(wds(folder), view, batch_size=2, seed=0))
    assert next(iterator)["images"].shape == (2, 16, 16, 3)
    for shard in folder.glob("*.tar"):
        shard.rename(shard.with_suffix(".gone"))
    with pytest.raises(ValueError, match=r"100 unusable samples .*0000\d\.tar.*No such file"):
        for _ in range(20):  # some batches are read ahead
            next(iterator)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("Ein Häuschen\n犬の写真\nकुत्ता\n🐈", ("Ein Häuschen", "犬の写真", "कुत्ता", "🐈")),
        ("twice\ntwice\n", ("twice", "twice")),
        ("\ufeffbyte order mark\r\nWindows lines\r\n", ("byte order mark", "Windows lines")),
        ("one\u2028line\x85of\x1ctext", ("one\u2028line\x85of\x1ctext",)),
        ("Ein Häuschen\n犬\n".encode("utf-16"), ("Ein Häuschen", "犬")),
        ("Häuschen".encode("utf-16-be").join([b"\xfe\xff", b""]), ("Häuschen",)),
        ("Häuschen".encode("utf-32"), ("Häuschen",)),
        (" \n\t\n", ()),
        ("\ufeff", ()),
    ],
)
def test_captions_of_every_language_and_none(tmp_path, text, captions):
    data = text if isinstance(text, bytes) else text.encode()
    write_tar(tmp_path / "a.tar", [("x.png", png(0)), ("x.txt", data)])
    assert wds(tmp_path)[0].captions == captions


def test_source_pickles_small_with_its_index_mapped(folder):
    source = wds(folder)
    expected = source[7]
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert pickle.loads(data)[7] == expected


@pytest.mark.parametrize("pattern", ["none*.tar", "{00000..00003}.tar", "{3..1}.tar"])
def test_missing_shards_are_named(folder, pattern):
    with pytest.raises(FileNotFoundError, match="no shard matches"):
        wds(folder, pattern)


def test_shards_without_samples_are_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.tar").write_bytes(b"not a tar file at all" * 100)
    write_tar(tmp_path / "c.tar", [])
    with pytest.raises(ValueError, match="no usable sample in the 3 shard"):
        wds(tmp_path)
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "b.tar", "x.png")
    with pytest.raises(ValueError, match="uncompressed tar"):
        wds(tmp_path, "d.tar.gz")


def test_braces_expand_like_a_shell(tmp_path):
    for name in ("a08", "a09", "a10", "b08", "b09", "b10"):
        (tmp_path / name).touch()
    names = [Path(p).name for p in expand(f"{tmp_path}/{{a,b}}{{08..10}}")]
    assert names == ["a08", "a09", "a10", "b08", "b09", "b10"]


@pytest.mark.parametrize("home", [None, "file"])
def test_without_a_folder_for_indices_the_setting_is_named(tmp_path, monkeypatch, home):
    monkeypatch.delenv("TCLIP_DATA_DIR", raising=False)
    (tmp_path / "file").write_text("")

    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    write_tar(tmp_path / "0.tar", pairs(range(3)))
    with pytest.raises(OSError, match="TCLIP_DATA_DIR"):
        open_source(SourceConfig(f"wds:{tmp_path}/0.tar"))
    assert len(open_source(SourceConfig(f"wds:{tmp_path}/0.tar", data_dir=str(tmp_path)))) == 3
