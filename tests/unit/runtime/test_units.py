"""The file of finished units: appending, kills, full disks, lines of other runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest
from etils import epath

from gram_jax.runtime import Units

DEPENDS = {"rate": 0.5, "data": "abc", "shots": (1, 4)}
BY = {"git": "12ab"}


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / "rows.jsonl"


def unit_of(number):
    return ("coop", "toy", number, None)


def fill(path, count, by=BY):
    units = Units(path, by)
    for number in range(count):
        if units.find(unit_of(number), DEPENDS) is None:
            units.add(unit_of(number), DEPENDS, [{"value": number / 3, "text": "é\n"}])
    return units


def test_a_unit_is_a_line_and_comes_back(path):
    assert not path.exists()
    units = fill(path, 3)
    *lines, end = path.read_bytes().split(b"\n")
    assert end == b""
    for number, line in enumerate(map(json.loads, lines)):
        assert line["unit"] == ["coop", "toy", number, None]
        assert line["depends"] == {"rate": 0.5, "data": "abc", "shots": [1, 4]}
        assert line["by"] == BY
        checksum = line.pop("sha256")
        assert checksum == hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
    again = Units(path)
    assert len(again) == len(units) == 3
    assert again.find(unit_of(1), DEPENDS) == units.find(unit_of(1), DEPENDS) == [{"value": 1 / 3, "text": "é\n"}]
    assert again.find(unit_of(3), DEPENDS) is None


def test_what_is_written_is_never_written_again(path, monkeypatch):
    fill(path, 2)
    before, inode, synced = path.read_bytes(), os.stat(path).st_ino, []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    fill(path, 3)
    assert path.read_bytes().startswith(before)
    assert os.stat(path).st_ino == inode
    assert synced == [os.stat(path).st_size]  # on disk, all of it, before add returns


@pytest.mark.parametrize("kept", [1, 2, 40, -1])
@pytest.mark.parametrize("count", [1, 3])
def test_a_torn_last_line_is_dropped_and_done_again(path, kept, count, caplog):
    fill(path, count)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    units = Units(path)
    assert len(units) == count - 1
    assert path.read_bytes() == b"".join(lines[:-1])
    assert "rows.jsonl" in caplog.text
    fill(path, count)
    assert path.read_bytes() == whole


def test_a_full_disk_loses_the_unit_and_nothing_else(path, monkeypatch):
    units = fill(path, 2)
    before = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        units.add(unit_of(2), DEPENDS, 0)
    monkeypatch.undo()
    assert units.find(unit_of(2), DEPENDS) is None
    path.write_bytes(before + b'{"unit": ["co')  # as far as there was room
    units.add(unit_of(2), DEPENDS, 1)
    again = Units(path)
    assert len(again) == 3
    assert again.find(unit_of(2), DEPENDS) == 1


def test_a_result_under_other_settings_is_named_kept_and_not_used(path, caplog):
    fill(path, 2)
    before = path.read_bytes()
    units = Units(path)
    other = DEPENDS | {"rate": 0.1, "tau": 1}
    assert [units.find(unit_of(number), other) for number in range(2)] == [None, None]
    assert caplog.text.count("rate was 0.5 and is 0.1; tau was None and is 1") == 1  # not for every unit
    units.add(unit_of(0), other, "other")
    assert path.read_bytes().startswith(before)
    again = Units(path)
    assert (again.find(unit_of(0), other), again.find(unit_of(0), DEPENDS)[0]["value"]) == ("other", 0)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("found", [{"value": 0.75}]),
        ("depends", {"rate": 0.1}),
        ("by", {"git": "ffff"}),
        ("unit", ["vpt", "toy", 0, None]),
    ],
)
def test_a_changed_line_is_named_and_refused(path, what, value, number):
    fill(path, 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number - 1][what] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line {number}, .*checksum"):
        Units(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"{}", b"3", b"\xff\xfe", b"", b"[" * 100_000, b'{"unit": [[]], "found": 1}'])
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_is_named_and_kept(path, damage, number):
    fill(path, 3)
    lines = path.read_bytes().splitlines()
    lines[number - 1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line {number} is damaged"):
        Units(path)
    assert path.read_bytes() == before


def test_files_of_two_runs_can_be_joined(path, tmp_path):
    fill(path, 2)
    other = epath.Path(tmp_path) / "other.jsonl"
    fill(other, 4, by={"git": "34cd"})
    path.write_bytes(path.read_bytes() + other.read_bytes())
    units = Units(path)
    assert all(units.find(unit_of(number), DEPENDS) for number in range(4))
    assert units.measured_by() == [{"git": "12ab", "units": 2}, {"git": "34cd", "units": 2}]


def test_only_what_was_used_is_attributed(path):
    fill(path, 3)
    units = Units(path, {"git": "34cd"})
    units.find(unit_of(0), DEPENDS)
    units.add(unit_of(3), DEPENDS, 1)
    units.find(unit_of(3), DEPENDS)
    assert units.measured_by() == [{"git": "12ab", "units": 1}, {"git": "34cd", "units": 1}]


def test_remote_files_are_replaced_as_a_whole(path, monkeypatch):
    monkeypatch.setattr("gram_jax.runtime.units.is_remote", lambda _: True)
    fill(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"un')
    fill(path, 3)
    assert path.read_bytes().startswith(whole)
    assert len(Units(path)) == 3
