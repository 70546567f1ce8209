"""Zip archives against Python's zipfile, which writes them."""

from __future__ import annotations

import mmap
import zipfile

import pytest

from gram_jax.clip.formats import zip_members
from gram_jax.errors import InputError

CONTENTS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(256)) * 40, "a/é": b"", "a/version": b"3\n"}


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive and maps it."""
    opened = []

    def write(method: int = zipfile.ZIP_STORED, comment: bytes = b"", cut: int = 0) -> mmap.mmap:
        path = tmp_path / "archive.zip"
        with zipfile.ZipFile(path, "w", method) as file:
            file.comment = comment
            for name, content in CONTENTS.items():
                file.writestr(name, content)
        path.write_bytes(path.read_bytes()[cut:])
        with path.open("rb") as file:
            opened.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return opened[-1]

    yield write
    for each in opened:
        each.close()


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 5000, 1])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"PK" * 1000])
def test_members_are_where_they_are_said_to_be(archive, comment, limit, monkeypatch):
    """A lower limit makes zipfile write the fields of archives above 4 GiB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    file = archive(comment=comment)
    found = zip_members.members(file)
    assert list(found) == list(CONTENTS)
    for name, content in CONTENTS.items():
        start = zip_members.start_of(file, name, found[name])
        assert file[start : start + found[name].size] == content


def test_compressed_members_are_refused(archive):
    file = archive(zipfile.ZIP_DEFLATED)
    found = zip_members.members(file)
    with pytest.raises(InputError, match="'a/data/0' is compressed"):
        zip_members.start_of(file, "a/data/0", found["a/data/0"])


def test_archives_without_a_begin_or_with_too_many_members(archive, monkeypatch):
    with pytest.raises(InputError, match="damaged"):
        zip_members.members(archive(cut=100))
    monkeypatch.setattr(zip_members, "MAX_MEMBERS", 3)
    with pytest.raises(InputError, match="4 members, the limit is 3"):
        zip_members.members(archive())


def test_members_beyond_the_file(archive):
    file = archive()
    with pytest.raises(InputError, match=f"{len(file)} bytes, more than"):
        zip_members.start_of(file, "x", zip_members.Member(0, len(file), True))
    with pytest.raises(InputError, match="damaged at 'x'"):
        zip_members.start_of(file, "x", zip_members.Member(1 << 40, 1, True))
