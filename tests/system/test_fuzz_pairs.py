"""Readers of image-text pairs on untrusted files: images, captions, tables, tar archives."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from gram_jax.clip.decoding import FORMATS, ImageError
from gram_jax.clip.images import ImageTransform
from gram_jax.data import Pair, Skipped, read_pairs
from gram_jax.data.pairs.base import caption_from_json, make_pair
from gram_jax.data.pairs.shards import check_image
from tests.system.fuzzing import altered, damaged, few, kept, many, tried
from tests.unit.data.pair_files import pack, png

TRANSFORM = ImageTransform(size=8, crop=(8, 8), max_pixels=100_000)


def encoded(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    buffer = io.BytesIO()
    try:
        Image.fromarray(noise).save(buffer, kind)
    except (KeyError, OSError):  # a format that this Pillow was built without
        return b""
    return buffer.getvalue()


IMAGES = [image for image in map(encoded, FORMATS) if image]


@few(image=st.one_of(st.binary(max_size=300), st.sampled_from(IMAGES).flatmap(damaged)))
def test_image_bytes(image):
    with kept():
        pixels = tried(lambda: TRANSFORM.pixels(image, "photo 7"), ImageError, names="photo 7")
        assert pixels is None or (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
        found = check_image(Pair("photo 7", image, "a"), 100_000)
        assert isinstance(found, Pair | Skipped)
        assert found.name == "photo 7"


test_image_bytes_many = many(test_image_bytes)

CAPTIONS = st.one_of(st.none(), st.binary(max_size=200), st.text(st.characters(), max_size=50))
KEYED = altered({"caption": "a cat", "text": "b", "key": "0", "more": {"caption": [1]}}).map(
    lambda document: json.dumps(document).encode()
)


@few(caption=CAPTIONS, beside=st.one_of(KEYED, st.binary(max_size=100), KEYED.flatmap(damaged)))
def test_captions(caption, beside):
    for found in (make_pair("0.jpg", b"x", caption), make_pair("0.jpg", b"x", caption_from_json("0.jpg", beside, ""))):
        assert found.name == "0.jpg"
        if isinstance(found, Pair):
            assert found.caption == found.caption.strip() != ""
            assert found.caption.encode().decode() == found.caption


test_captions_many = many(test_captions)


def test_json_that_is_too_deep_is_no_caption():
    found = caption_from_json("0.jpg", b'{"caption": ' + b"[" * 100_000, "")
    assert isinstance(found, Skipped)


def everything(spec: str, path, **errors) -> list[Pair | Skipped] | None:
    """All entries of a source; each is a pair or says why not."""
    found = tried(lambda: list(read_pairs(spec)), ValueError, FileNotFoundError, names=str(path))
    for each in found or ():
        assert isinstance(each, Pair) or (each.name and each.detail and len(each.detail) < 10_000)
    return found


TABLE = b'path,caption\r\n0.png,a cat\n"0.png","two, words"\n../secret.png,x\n0.png,y\n'


@few(kind=st.sampled_from(["csv", "tsv"]), table=damaged(TABLE), tabs=st.booleans())
def test_tables(kind, table, tabs):
    with kept() as folder:
        (folder / "0.png").write_bytes(png(3))
        (folder / "t.csv").write_bytes(table.replace(b",", b"\t") if tabs else table)
        everything(f"{kind}:{folder}/t.csv", folder)


test_tables_many = many(test_tables)
CELLS = st.one_of(
    st.text(st.characters(exclude_characters='\r\n,"\t'), max_size=20),
    st.sampled_from(["~", "~\0", "\0", "a\0b.png", "x" * 5000, "/" * 300, "..", "/dev/zero", "file:///x"]),
)


@few(kind=st.sampled_from(["csv", "tsv"]), cells=st.lists(CELLS, min_size=1, max_size=6))
def test_paths_in_tables(kind, cells):
    with kept() as folder:
        rows = "".join(f"{cell}{',' if kind == 'csv' else chr(9)}words\n" for cell in cells)
        head = "path,caption\n" if kind == "csv" else "path\tcaption\n"
        (folder / "t.csv").write_text(head + rows, errors="surrogatepass")
        everything(f"{kind}:{folder}/t.csv", folder)


test_paths_in_tables_many = many(test_paths_in_tables)


def test_a_table_without_ends_of_lines_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("gram_jax.data.pairs.tables.MAX_LINE", 1000)
    for kind in ("csv", "tsv"):
        path = tmp_path / f"t.{kind}"
        path.write_text("path,caption\n".replace(",", "," if kind == "csv" else "\t") + "x" * 1200)
        with pytest.raises(ValueError, match=rf"t\.{kind}: the line at byte 13 has more than 1000 bytes"):
            list(read_pairs(f"{kind}:{path}"))


def archive(members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member, content in members:
            file.addfile(member, io.BytesIO(content) if content else None)
        used = file.offset
    return buffer.getvalue()[: used + 1024]  # without what fills it up to 10 KB


@st.composite
def headers(draw):
    """Members of every kind, of names that lead out, with sizes that are claimed and extended headers that lie."""
    names = ["0.png", "0.txt", "0.json", "../1.png", "/2.txt", "a\\..\\3.png", "é.png", "x" * 300 + ".png"]
    member = tarfile.TarInfo(draw(st.sampled_from(names)))
    content = draw(st.sampled_from([b"", png(1), b"words", b'{"caption": "c"}']))
    member.size = len(content)
    member.type = draw(
        st.sampled_from([*[tarfile.REGTYPE] * 6, b"1", b"2", b"3", b"6", b"7", b"S", b"x", b"g", b"L", b"K", b"X"])
    )
    member.linkname = draw(st.sampled_from(["", "../../precious.txt", "/etc/passwd"]))
    if member.type == tarfile.REGTYPE:
        keys = st.sampled_from(
            ["size", "path", "mtime", "uid", "hdrcharset"]
            + [f"GNU.sparse.{key}" for key in ("major", "minor", "map", "size", "name", "realsize")]
        )
        values = st.sampled_from(["1", "0", "-5", "x", "1,2,x", "9" * 30, "inf", "nan", "../../p.png", "\0", "BINARY"])
        member.pax_headers = draw(st.dictionaries(keys, values, max_size=3))
    return member, content


@few(members=st.lists(headers(), min_size=1, max_size=5), data=st.data())
def test_archives(members, data):
    whole = archive(members)
    content = data.draw(st.one_of(st.just(whole), damaged(whole), st.binary(max_size=700)))
    content = data.draw(st.sampled_from([bytes, bytes, gzip.compress, bz2.compress, lzma.compress]))(content)
    with kept() as folder:
        (folder / "x.tar").write_bytes(content)
        found = everything(f"webdataset:{folder}/x.tar", folder)
        assert found is not None  # a damaged archive is an entry of the list, never the end of a corpus
        assert not [each for each in found if isinstance(each, Pair) and b"precious" in each.image]


test_archives_many = many(test_archives)


def huge(kind: bytes, claimed: int, content: bytes = b"") -> bytes:
    member = tarfile.TarInfo("0.png")
    member.type, member.size = kind, claimed
    return member.tobuf(tarfile.GNU_FORMAT) + content


# Compressed, so that 16 MB of zeros are there for who reads them.
BOMB = {
    (kind, claimed): gzip.compress(huge(kind, claimed, bytes(16 << 20)), 1)
    for kind, claimed in [(b"0", 2**60), (b"0", -(2**40)), (b"x", 2**60), (b"g", 2**40), (b"L", 2**60), (b"S", 2**60)]
}


@pytest.mark.parametrize(("kind", "claimed"), BOMB)
def test_a_member_that_claims_a_huge_size_takes_no_memory(kind, claimed):
    with kept(8 << 20) as folder:
        (folder / "x.tar").write_bytes(BOMB[kind, claimed])
        found = list(read_pairs(f"webdataset:{folder}/x.tar"))
        assert found
        assert all(isinstance(each, Skipped) for each in found)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_extended_headers_one_after_the_other_end_in_a_damaged_archive(kind):
    with kept() as folder:
        each = huge(kind, 20, b"20 comment=abcdefgh\n".ljust(512, b"\0"))
        (folder / "x.tar").write_bytes(each * 5000)
        (found,) = read_pairs(f"webdataset:{folder}/x.tar")
        assert found.reason == "damaged archive"


@pytest.mark.parametrize("sparse", ["0.0", "0.1", "1.0", "old"])
def test_sparse_members_are_refused_and_the_next_one_is_read(sparse, tmp_path):
    member = tarfile.TarInfo("0.png")
    content = (b"1\n0\n5\n".ljust(512, b"\0") if sparse == "1.0" else b"") + b"words"
    member.size = len(content)
    if sparse == "old":
        member.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[482], header[483:495] = 1, b"0000001\0" + bytes(4)  # a block of the map follows
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        last = bytes(504) + bytes(8)
        first = bytes(header) + last + content.ljust(512, b"\0")
    else:
        major, minor = sparse.split(".")
        member.pax_headers = {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.realsize": "5"}
        if sparse == "0.1":
            member.pax_headers["GNU.sparse.map"] = "0,5"
        if sparse == "0.0":
            member.pax_headers = {"GNU.sparse.size": "5", "GNU.sparse.numblocks": "1"}
        first = archive([(member, content)])[:-1024]
    rest = pack(tmp_path / "rest.tar", [("1.png", png(1)), ("1.txt", b"one")]).read_bytes()
    (tmp_path / "x.tar").write_bytes(first + rest)
    refused, pair = read_pairs(f"webdataset:{tmp_path}/x.tar")
    assert (refused.reason, refused.detail) == ("refused", "a link or a special file")
    assert (pair.image, pair.caption) == (png(1), "one")
