"""Pairs in tar archives: the layout of img2dataset, archives that nobody should trust, archives that are damaged."""

import bz2
import gzip
import json
import os
import tarfile
import tracemalloc

import numpy as np
import pytest

from gram_jax.data import Pair, Skipped, read_pairs
from gram_jax.data.pairs.archives import expand_braces
from tests.unit.data.pair_files import everything, pack, pairs, png, skips, unused


def test_archives_in_the_layout_of_img2dataset(tmp_path):
    for number in range(2):
        members = []
        for sample in range(3):
            key = f"{number:05d}{sample:04d}"
            members += [
                (f"{key}.jpg", png(10 * number + sample)),
                (f"{key}.txt", f"caption {number} {sample}\n".encode()),
                (f"{key}.json", json.dumps({"caption": "not this", "key": key}).encode()),
            ]
        pack(tmp_path / f"{number:05d}.tar", members)
    spec = f"webdataset:{tmp_path}/{{00000..00001}}.tar"
    found = list(read_pairs(spec))
    assert [(pair.image, pair.caption) for pair in pairs(found)] == [
        (png(10 * number + sample), f"caption {number} {sample}") for number in range(2) for sample in range(3)
    ]
    assert pairs(found)[4].name == "00001.tar/000010001.jpg"
    assert [kind for _, kind in unused(found)] == 6 * [".json members beside a .txt"]
    assert found == list(read_pairs(f"webdataset:{tmp_path}/*.tar")) == everything(spec)


def test_captions_may_be_json_and_archives_compressed(tmp_path):
    members = [
        ("a/1.webp", png(1)), ("a/1.json", b'{"text": "one", "title": "One"}'),
        ("a/2.json", b'{"alt": "two"}'), ("a/2.png", png(2)),
        ("a/3.cls", b"7"), ("a/3.seg.png", png(3)), ("a/3.txt", b"three"),
        ("._4.png", b"left by a Mac"), ("__index__", b"?"),
    ]  # fmt: skip
    pack(tmp_path / "plain.tar", members)
    whole = (tmp_path / "plain.tar").read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "x.tar.bz2").write_bytes(bz2.compress(whole))
    for name in ("plain.tar", "x.tar.gz", "x.tar.bz2"):
        found = everything(f"webdataset:{tmp_path}/{name}")
        assert [each.caption for each in found if isinstance(each, Pair)] == ["one", "three"]
        assert skips(found) == [(f"{name}/a/2.png", "no caption")]
    found = everything(f"webdataset:{tmp_path}/plain.tar", caption_column="alt")
    assert [each.caption for each in found if isinstance(each, Pair)] == ["two", "three"]


def test_members_that_nobody_should_trust_are_refused_and_nothing_is_extracted(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def link(name, kind, target):
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, target
        return header

    pack(
        tmp_path / "evil.tar",
        [
            ("0.png", png(0)), ("0.txt", b"fine"),
            ("1.png", png(1)), link("1.txt", tarfile.SYMTYPE, str(secret)),
            ("2.png", png(2)), link("2.txt", tarfile.LNKTYPE, "0.txt"),
            ("/3.png", png(3)), ("/3.txt", b"absolute"),
            ("../4.png", png(4)), ("../4.txt", b"outside"),
            ("5.png", b"x" * 5000), ("5.txt", b"large"),
            link("6.png", tarfile.FIFOTYPE, ""), ("6.txt", b"a pipe"),
            ("7.png", png(7)), ("7.txt", b"fine too"),
        ],
    )  # fmt: skip
    found = everything(f"webdataset:{tmp_path}/evil.tar", max_bytes=4000)
    assert [each.caption for each in found if isinstance(each, Pair)] == ["fine", "fine too"]
    refused = [each for each in found if isinstance(each, Skipped)]
    assert {each.reason for each in refused} == {"refused"}
    why = ["a link", "a link", "leads out", "leads out", "5000 bytes", "a link or a special file"]
    assert [word in each.detail for word, each in zip(why, refused, strict=True)] == [True] * 6
    assert os.listdir() == []
    assert sorted(os.listdir(tmp_path)) == ["evil.tar", "here", "secret.txt"]


def samples(count: int) -> list[tuple[str, bytes]]:
    return [member for n in range(count) for member in ((f"{n:03d}.png", png(n)), (f"{n:03d}.txt", b"number %d" % n))]


@pytest.mark.parametrize("damage", ["cut", "cut in a header", "header", "garbage", "gzip", "empty"])
def test_a_damaged_archive_gives_what_stands_before_the_damage_and_is_named(tmp_path, damage):
    path = pack(tmp_path / "a.tar", samples(20))
    whole = path.read_bytes()
    place = whole.index(b"010.txt")  # the header of a member in the middle
    path.write_bytes(
        {
            "cut": whole[: place + 512 + 3],
            "cut in a header": whole[: place + 100],
            "header": whole[: place + 100] + b"\xff" * 300 + whole[place + 400 :],
            "garbage": b"no archive at all" * 100,
            "gzip": gzip.compress(whole)[:-300],
            "empty": b"",
        }[damage]
    )
    *before, last = everything(f"webdataset:{path}")
    assert (last.name, last.reason) == ("a.tar", "damaged archive")
    assert "download it again" in last.detail
    assert all(isinstance(each, Pair) for each in before)
    assert [each.caption for each in before] == [f"number {n}" for n in range(len(before))]
    assert len(before) == {"garbage": 0, "empty": 0}.get(damage, len(before))
    if damage.startswith(("cut", "header")):
        assert len(before) == 10


def test_memory_does_not_grow_with_the_archive(tmp_path):
    noise = np.random.default_rng(0).bytes(100_000)
    members = (
        member for n in range(200) for member in ((f"{n:04d}.jpg", noise), (f"{n:04d}.txt", b"a caption"))
    )  # 20 MB
    pack(tmp_path / "large.tar", members)
    tracemalloc.start()
    assert sum(1 for _ in read_pairs(f"webdataset:{tmp_path}/large.tar")) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{00009..00011}.tar", ["00009.tar", "00010.tar", "00011.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern, expected):
    assert expand_braces(pattern) == expected
