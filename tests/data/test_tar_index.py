"""The index of tar shards: cut, damaged, interrupted, grown, and of many samples."""

import os
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.data import tar_index
from tclip.data.tar_index import INDEX, index_shard, index_shards, open_index
from tests.helpers.tars import pairs, png, write_tar


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_cut_shard_gives_exactly_its_whole_samples(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    write_tar(folder / "a.tar", pairs(range(4)))
    whole = (folder / "a.tar").read_bytes()
    with tarfile.open(folder / "a.tar") as tar:
        ends = [m.offset_data + m.size for m in tar.getmembers() if m.name.endswith("txt")]
    cut = data.draw(st.integers(0, ends[-1] + 511))
    (folder / "b.tar").write_bytes(whole[:cut])
    table, skipped, complaint = index_shard(str(folder / "b.tar"))
    assert len(table) == sum(end <= cut for end in ends)
    assert skipped <= 1
    assert complaint
    assert index_shard(str(folder / "a.tar"))[1:] == (0, "")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_shards_never_raise_or_point_outside(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    write_tar(folder / "a.tar", pairs(range(3)))
    content = bytearray((folder / "a.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        header = 512 * data.draw(st.integers(0, len(content) // 512 - 1))
        content[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    (folder / "b.tar").write_bytes(content)
    table, _, _ = index_shard(str(folder / "b.tar"))
    for name in ("image", "text"):
        ends = table[f"{name}_offset"] + table[f"{name}_size"]
        assert np.all(ends <= len(content))
        assert np.all(table[f"{name}_offset"] >= 0)


def test_negative_member_size_ends_the_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [*pairs([0]), ("00001.png", png(1))])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    at = content.rindex(b"00001.png")
    header = bytearray(content[at : at + 512])
    header[124:136] = b"\xff" * 11 + b"\x00"  # base-256, -256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[at : at + 512] = header
    (tmp_path / "a.tar").write_bytes(content)
    table, _, complaint = index_shard(str(tmp_path / "a.tar"))
    assert len(table) == 1
    assert complaint


@pytest.fixture
def shards(tmp_path):
    """Four shards of ten samples, the last one cut."""
    paths = [tmp_path / f"{number:05}.tar" for number in range(4)]
    for number, path in enumerate(paths):
        write_tar(path, pairs(range(10 * number, 10 * number + 10)))
    paths[-1].write_bytes(paths[-1].read_bytes().split(b"00033.json")[0])
    return [str(path) for path in paths]


@pytest.fixture
def indexed(monkeypatch):
    """The shards that were read, as a list that grows."""
    seen = []

    def spy(shard):
        seen.append(shard)
        return index_shard(shard)

    monkeypatch.setattr(tar_index, "index_shard", spy)
    return seen


def test_index_of_all_is_the_indices_of_each_in_order(shards, tmp_path):
    path, report = index_shards(shards, tmp_path / "index")
    rows = open_index(path)
    assert rows["shard"].tolist() == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 3
    for number, shard in enumerate(shards):
        expected, _, _ = index_shard(shard)
        expected["shard"] = number
        np.testing.assert_array_equal(rows[rows["shard"] == number], expected)
    assert (report["samples"], report["skipped"]) == (33, 0)
    assert report["cut"] == [
        f"{shards[3]}: no end-of-archive mark; its first 3 samples are used",
    ]


def test_only_new_and_changed_shards_are_read(shards, tmp_path, indexed):
    index_shards(shards[:3], tmp_path / "index")
    assert indexed == shards[:3]
    index_shards(shards[:3], tmp_path / "index")
    index_shards(shards, tmp_path / "index")
    assert indexed == shards
    write_tar(shards[1], pairs(range(50, 52)))
    path, report = index_shards(shards, tmp_path / "index")
    assert indexed == [*shards, shards[1]]
    assert report["samples"] == len(open_index(path)) == 25


def test_interrupted_indexing_goes_on(shards, tmp_path, indexed, monkeypatch):
    spy = tar_index.index_shard

    def interrupted(shard):
        if shard == shards[2]:
            raise KeyboardInterrupt
        return spy(shard)

    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "index_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index_shards(shards, tmp_path / "index")
    path, _ = index_shards(shards, tmp_path / "index")
    assert indexed == shards
    assert len(open_index(path)) == 33


def test_processes_index_as_one_does(shards, tmp_path, monkeypatch):
    one, report = index_shards(shards, tmp_path / "one")
    monkeypatch.setattr(tar_index, "PARALLEL_SHARDS", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tar_index, "index_shard", lambda shard: pytest.fail("indexed here"))
    many, same = index_shards(shards, tmp_path / "many")
    assert many.read_bytes() == one.read_bytes()
    assert same == report


def die(shard, path):
    os._exit(9)


def test_what_a_killed_process_left_is_indexed_here(shards, tmp_path, monkeypatch, caplog):
    one, report = index_shards(shards, tmp_path / "one")
    monkeypatch.setattr(tar_index, "PARALLEL_SHARDS", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tar_index, "_index_missing", die)
    path, same = index_shards(shards, tmp_path / "many")
    assert path.read_bytes() == one.read_bytes()
    assert same == report
    assert "was killed" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"PK nonsense", None])
def test_damaged_indices_are_made_again(shards, tmp_path, damage, indexed):
    path, report = index_shards(shards, tmp_path / "index")
    expected = path.read_bytes()
    path.write_bytes(expected[:-1])
    for table in (tmp_path / "index").glob("*.npz"):
        table.write_bytes(table.read_bytes()[:-30] if damage is None else damage)
    assert index_shards(shards, tmp_path / "index") == (path, report)
    assert indexed == shards * 2
    assert path.read_bytes() == expected
    path.with_suffix(".json").write_text("{}")
    assert index_shards(shards, tmp_path / "index") == (path, report)
    assert indexed == shards * 2


def test_a_million_samples_are_indexed_and_opened_in_little_memory(tmp_path, monkeypatch):
    """Of 32 MB of rows only some shards' are ever held, and none once they are open."""
    rows = np.zeros(10_000, INDEX)
    rows["image_size"] = np.arange(len(rows))
    shards = [str(tmp_path / f"{number:05}.tar") for number in range(100)]
    for shard in shards:
        open(shard, "w").close()
        tar_index.save_shard_index(
            tar_index.shard_index_path(shard, tmp_path), rows, skipped=2, complaint=""
        )
    tracemalloc.start()
    path, report = index_shards(shards, tmp_path)
    _, peak_indexing = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    index_shards(shards, tmp_path)
    index = open_index(path)
    assert index[[999_999, 123_456]].tolist() == [
        (99, 0, 0, 0, 9999, 0),
        (12, 0, 0, 0, 3456, 0),
    ]
    _, peak_opening = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == report["samples"] == 10**6
    assert report["skipped"] == 200
    assert peak_indexing < 10 * rows.nbytes
    assert peak_opening < rows.nbytes
