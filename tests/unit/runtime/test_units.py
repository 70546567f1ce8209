"""The file of finished units: appending, kills, full disks, other runs."""

from __future__ import annotations

import errno
import json
import os

import pytest
from etils import epath

from gram_jax.runtime import Units

IDENTITY = {"seeds": (1, 2), "shots": [1]}


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / "rows.jsonl"


def fill(path, count):
    units = Units(path, IDENTITY)
    for number in range(len(units), count):
        units.add(("coop", "toy", number, None), [{"value": number / 3, "text": "é\n"}])
    return units


def test_a_unit_is_a_line_and_comes_back(path):
    assert not path.exists()
    units = fill(path, 3)
    first, *lines, end = path.read_bytes().split(b"\n")
    assert json.loads(first) == {"seeds": [1, 2], "shots": [1]}
    assert [json.loads(line)["unit"] for line in lines] == [["coop", "toy", number, None] for number in range(3)]
    assert end == b""
    again = Units(path, IDENTITY)
    assert len(again) == len(units) == 3
    assert again["coop", "toy", 1, None] == units["coop", "toy", 1, None] == [{"value": 1 / 3, "text": "é\n"}]
    assert ("coop", "toy", 3, None) not in again


def test_what_is_written_is_never_written_again(path, monkeypatch):
    fill(path, 2)
    before, inode, synced = path.read_bytes(), os.stat(path).st_ino, []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    fill(path, 3)
    assert path.read_bytes().startswith(before)
    assert os.stat(path).st_ino == inode
    assert synced == [os.stat(path).st_size]  # on disk, all of it, before add returns


@pytest.mark.parametrize("kept", [1, 2, 40, -1])
def test_a_torn_last_line_is_dropped_and_done_again(path, kept, caplog):
    fill(path, 3)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    units = Units(path, IDENTITY)
    assert len(units) == 2
    assert path.read_bytes() == b"".join(lines[:-1])
    assert "rows.jsonl" in caplog.text
    fill(path, 3)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b'{"seeds": [1'])
def test_a_file_without_its_first_line_is_begun_anew(path, content):
    path.write_bytes(content)
    assert len(Units(path, IDENTITY)) == 0
    fill(path, 2)
    assert len(Units(path, IDENTITY)) == 2


def test_a_full_disk_loses_the_unit_and_nothing_else(path, monkeypatch):
    units = fill(path, 2)
    before = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        units.add(("coop", "toy", 2, None), 0)
    monkeypatch.undo()
    assert ("coop", "toy", 2, None) not in units
    path.write_bytes(before + b'{"unit": ["co')  # as far as there was room
    units.add(("coop", "toy", 2, None), 1)
    again = Units(path, IDENTITY)
    assert len(again) == 3
    assert again["coop", "toy", 2, None] == 1


def test_another_run_is_refused_field_by_field(path):
    fill(path, 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"seeds was \[1, 2\] and is \[3\]; tau was None and is 1"):
        Units(path, {"seeds": [3], "shots": [1], "tau": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"{}", b"3", b"\xff\xfe", b"", b"[" * 100_000, b'{"unit": [[]], "found": 1}'])
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_is_named_and_kept(path, damage, number):
    fill(path, 3)
    lines = path.read_bytes().splitlines()
    lines[number - 1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"rows\.jsonl(, line {number}| belongs to a run)"):
        Units(path, IDENTITY)
    assert path.read_bytes() == before


def test_remote_files_are_replaced_as_a_whole(path, monkeypatch):
    monkeypatch.setattr("gram_jax.runtime.units.is_remote", lambda _: True)
    fill(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"un')
    fill(path, 3)
    assert path.read_bytes().startswith(whole)
    assert len(Units(path, IDENTITY)) == 3
