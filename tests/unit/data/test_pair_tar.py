"""The tar reader against Python's tarfile, and its limits."""

import io
import tarfile

import pytest

from gram_jax.data.pairs.tar import MAX_GLOBAL, members, open_archive
from tests.unit.data.pair_files import pack

NAMES = ["a.txt", "folder/é.png", "x" * 150 + "/" + "y" * 120 + ".json", "z\udcff.txt", "large.bin", "empty.txt"]


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_sizes_and_contents_are_those_of_tarfile(tmp_path, layout, compression):
    path = tmp_path / "a.tar"
    contents = [b"words", bytes(range(256)), b"{}" * 300, b"q", b"z" * 200_000, b""]
    with tarfile.open(path, f"w:{compression}", format=layout) as archive:
        for name, content in zip(NAMES, contents, strict=True):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
        for name, kind in [("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)]:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "l" * 200
            archive.addfile(header)
    with tarfile.open(path) as archive:
        expected = [(each.name, each.size, each.isreg(), each.isdir()) for each in archive]
    with open_archive(path) as file:
        read = [(each[:4], each.read() if each.is_file else b"") for each in members(file)]
    assert [header for header, _ in read] == expected
    assert [content for _, content in read[: len(contents)]] == contents


def test_a_member_that_is_not_read_is_skipped(tmp_path):
    with open_archive(pack(tmp_path / "a.tar", [("0.txt", b"first" * 999), ("1.txt", b"second")])) as file:
        assert [each.read() for each in members(file) if each.name == "1.txt"] == [b"second"]


def test_global_headers_cannot_fill_the_memory(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={f"key{n}": "x" for n in range(MAX_GLOBAL + 1)}):
        pass
    with open_archive(tmp_path / "a.tar") as file, pytest.raises(tarfile.ReadError, match=str(MAX_GLOBAL)):
        list(members(file))


@pytest.mark.parametrize("entry", [b"11 size=-5\n", b"12 size=1_0\n", b"0 a=b\n", b"x a=b\n", b"99 a=b\n", b"8 a b\n"])
def test_an_invalid_extended_header_is_damage(tmp_path, entry):
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, len(entry)
    path = tmp_path / "a.tar"
    path.write_bytes(
        header.tobuf() + entry.ljust(512, b"\0") + pack(tmp_path / "b.tar", [("0.txt", b"a")]).read_bytes()
    )
    with open_archive(path) as file, pytest.raises(tarfile.ReadError):
        list(members(file))
