"""The walk and the index under atheris, which changes bytes until new code is reached.

A tar keeps true checksums while it is changed; otherwise nothing behind them would be met. What
fails, hangs for 2 s or takes memory is kept in the folder, and can be given again:

    python -m tests.campaigns.fuzz --guided 600 --folder found
    python -m tests.campaigns.fuzz --guided 0 found/crash-...
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

# What the first byte of an input says of the rest; an index comes as it is, without a mark, or with
# one that fits whatever its lines have become.
_TAR, _INDEX, _PLAIN_INDEX, _MARKED_INDEX = range(4)
_MEMORY_MB = 1500
_SECONDS_EACH = 2


def main(argv: list[str]) -> int:
    """Fuzz for a time in a process of its own; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guided", type=int, required=True, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, each with a seed of its own"
    )
    parser.add_argument("--folder", type=Path, help="keep inputs that fail here")
    parser.add_argument("inputs", nargs="*", help="try these instead")
    options = parser.parse_args(argv)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print(
            "atheris is not installed: pip install 'clipfast[fuzz]' (Linux alone)", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="clipfast-fuzz-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        corpus = Path(temporary) / "corpus"
        corpus.mkdir()
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
        processes = []
        for job in range(options.jobs):
            words = options.inputs or [str(corpus), f"-max_total_time={options.guided}"]
            words += [f"-timeout={_SECONDS_EACH}", f"-rss_limit_mb={_MEMORY_MB}", "-max_len=20000"]
            words += [f"-artifact_prefix={folder}/", f"-seed={options.seed + job + 1}"]
            command = [sys.executable, "-m", "tests.campaigns.fuzz_guided", *words]
            processes.append(subprocess.Popen(command))
        status = max(abs(process.wait()) for process in processes)
        found = sorted(p.name for p in folder.iterdir() if p.name.split("-")[0] in _KEPT)
        print(f"guided: {len(found)} inputs failed" + "".join(f"\n  {folder / n}" for n in found))
        return 1 if found or status else 0


_KEPT = ("crash", "timeout", "oom", "leak", "slow")


def seeds() -> list[bytes]:
    """Inputs to begin with: a byte for what they are, and a tar or an index."""
    from tests.campaigns import fuzz_indexes, fuzz_tars
    from tests.data.tars import END

    found = [bytes([_TAR]) + b"".join(parts) + END for parts in fuzz_tars.bases()]
    found += [bytes([_TAR]) + fuzz_tars.mutated(Random(i))[1] for i in range(200)]
    index = _Judge().index
    plain = fuzz_indexes.unmarked(index)
    found += [
        bytes([_INDEX]) + index,
        bytes([_PLAIN_INDEX]) + plain,
        bytes([_MARKED_INDEX]) + plain,
    ]
    return [data for data in found if len(data) < 20_000]


def _resummed(data: bytes) -> bytes:
    """A tar whose headers, as far as their sizes lead, have true checksums."""
    from tests.data.tars import BLOCK, resum

    made = bytearray(data)
    at = 0
    while at + BLOCK <= len(made):
        head = made[at : at + BLOCK]
        if any(head):
            made[at : at + BLOCK] = resum(head)
        digits = bytes(head[124:135]).strip(b" \0")
        size = int(digits, 8) if digits and not digits.strip(b"01234567") else 0
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return bytes(made)


class _Judge:
    """Judges one input in memory: no file is written."""

    def __init__(self) -> None:
        from clipfast.data import shards
        from clipfast.storage import Storage, register
        from tests.campaigns import fuzz_tars
        from tests.data.tars import END

        objects: dict[str, bytes] = {}

        class Memory(Storage):
            def list(self, folder: str) -> list[Any]:
                return []

            def size(self, path: str) -> int:
                if path not in objects:
                    raise FileNotFoundError(path)
                return len(objects[path])

            def modified(self, path: str) -> int:
                return 0

            def read_at(self, path: str, offset: int, size: int) -> bytes:
                self.size(path)
                return objects[path][offset : offset + size]

            def write_atomic(self, path: str, data: bytes) -> None:
                objects[path] = data

            def remove(self, path: str) -> None:
                objects.pop(path, None)

        register("fuzz", Memory())
        self._objects = objects
        self._tar = b"".join(fuzz_tars.plain()) + END
        objects["fuzz://x.tar"] = self._tar
        entries = [sample.entry for sample in shards.scan("fuzz://x.tar") if sample.entry]
        shards.write_index("fuzz://x.tar", entries)
        self.index = objects["fuzz://x.idx"]
        self._truth = self._pairs()

    def _pairs(self) -> list[tuple[str, bytes, bytes]]:
        from clipfast.data import shards

        table = shards.read_table("fuzz://x.tar")
        assert shards.count("fuzz://x.tar") == len(table), "fuzz://x counted otherwise"
        tar = self._objects["fuzz://x.tar"]
        return [
            (key, tar[at : at + size], tar[then : then + length])
            for key, at, size, then, length in zip(
                table.keys(),
                table.image_offset.tolist(),
                table.image_size.tolist(),
                table.caption_offset.tolist(),
                table.caption_size.tolist(),
                strict=True,
            )
        ]

    def __call__(self, data: bytes) -> None:
        """Raises where something is wrong."""
        if not data:
            return
        kind, rest = data[0] % 4, data[1:]
        if kind == _TAR:
            self._judge_tar(_resummed(rest))
            return
        self._objects.clear()
        self._objects["fuzz://x.tar"] = self._tar
        self._judge_index(self._marked(rest) if kind == _MARKED_INDEX else rest, kind)

    def _judge_tar(self, tar: bytes) -> None:
        from clipfast.data.scan import contents
        from tests.campaigns import fuzz_oracle

        self._objects.clear()
        self._objects["fuzz://x.tar"] = tar
        try:
            found = contents("fuzz://x.tar")
        except ValueError as error:
            if "'fuzz://x.tar'" not in str(error):
                raise AssertionError("an error without the shard's name") from error
            return
        truth = fuzz_oracle.read(tar)
        assert truth.whole, "tarfile stops where this goes on"
        samples = [sample.entry for sample in found.samples if sample.entry]
        for entry in samples:
            for place in (
                (entry.image_offset, entry.image_size),
                (entry.caption_offset, entry.caption_size),
            ):
                names = [name for name, *at in truth.files if tuple(at) == place]
                assert any(name.startswith(entry.key) for name in names), (entry, names)
        if truth.rest:
            assert any("left unread" in note for note in found.notes), "bytes behind the end"
        keys = {sample.key for sample in found.samples}
        names = {name.rstrip("/") for name, _ in found.left_out}
        for name, _, _ in truth.files:
            folder, slash, base = name.rpartition("/")
            key = folder + slash + base.partition(".")[0]
            assert key in keys or name.rstrip("/") in names, f"{name!r} vanished"

    def _marked(self, text: bytes) -> bytes:
        """An index with a mark that is true of its lines."""
        from clipfast.data.indexmark import make_mark

        first, _, body = text.partition(b"\n")
        words = first.split()[:2]
        count = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
        mark = make_mark("fuzz://x.tar", count, body).word().encode()
        return b" ".join([*words, mark]) + b"\n" + body

    def _judge_index(self, text: bytes, kind: int) -> None:
        self._objects["fuzz://x.idx"] = text
        try:
            found = self._pairs()
        except ValueError as error:
            if "fuzz://x.idx" not in str(error):
                raise AssertionError("an error without the index's name") from error
            return
        if kind == _MARKED_INDEX:
            # Whoever writes a true mark may leave out and mix what he likes.
            return
        left = list(self._truth)
        for pair in found:
            assert pair in left, f"{pair[0]!r} is no sample, or a second time"
            left.remove(pair)
        whole = kind == _INDEX and len(text.split(b"\n")[0].split()) > 2
        assert not (left and whole), "samples vanished"


def _fuzz(argv: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["clipfast.data"]):
        import clipfast.data.index  # noqa: F401
    atheris.Setup(argv, _Judge())
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(sys.argv)
