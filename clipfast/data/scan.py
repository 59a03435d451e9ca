"""Walk a shard and group its members into samples; what is in none is named."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from clipfast.data.fields import FIELDS, Entry, Fields, Member, Sample
from clipfast.data.tarwalk import Note, no_note, walk

# A table holds sizes in 32 bits.
_LARGEST = 2**31 - 1
_REPEATED = (
    "its key repeats behind an incomplete sample of the same key: which caption belongs to which "
    "image cannot be told; give each pair a key of its own"
)
_APART = (
    "; image and caption of this key do not lie side by side: pack it again with tar --sort=name"
)


@dataclass
class Contents:
    """What a shard holds. Every member is in a sample or is named.

    Attributes:
        samples: complete or not, in the order of the tar.
        left_out: (name, why) of members that are in no sample, or that a sample does not use.
        notes: what is odd about the shard itself.
    """

    samples: list[Sample] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, name: str | None, why: str) -> None:
        """Take what a walk says of a member, or of the shard where `name` is None."""
        if name is None:
            self.notes.append(why)
        else:
            self.left_out.append((name, why))


def contents(shard: str, fields: Fields = FIELDS) -> Contents:
    """Walk the tar headers of `shard` and group its members into samples.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.

    Raises:
        ValueError: see `clipfast.data.tarwalk.walk`.
    """
    found = Contents()
    all_runs = list(sample_runs(shard, fields, found.note))
    caption = fields.caption_of([members for _, run in all_runs for members in run])
    for key, run in all_runs:
        _add(found, key, run, fields, caption)
    _name_parts(found)
    return found


def sample_runs(
    shard: str, fields: Fields = FIELDS, note: Note = no_note
) -> Iterator[tuple[str, list[list[Member]]]]:
    """As ``runs``, and a run without any sample is taken apart at the last dot of its names.

    ``a.b.jpg`` and ``a.b.txt`` are then the sample ``a.b``, while ``a.seg.png`` beside ``a.jpg``
    and ``a.txt`` stays a member of ``a``.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.
        note: called for each member that is in no sample.

    Raises:
        ValueError: see `clipfast.data.tarwalk.walk`.
    """
    for key, run in runs(shard, fields, note):
        if not any(map(fields.is_complete, run)):
            apart = _at_last_dot(key, [member for members in run for member in members])
            if any(fields.is_complete(members) for _, again in apart for members in again):
                yield from apart
                continue
        yield key, run


def _at_last_dot(key: str, members: list[Member]) -> list[tuple[str, list[list[Member]]]]:
    """Members with the key up to the first dot, as runs of those with one up to the last."""
    found: list[tuple[str, list[list[Member]]]] = []
    for extension, offset, size in members:
        middle, dot, last = extension.rpartition(".")
        own = key + "." + middle if dot else key
        if not found or found[-1][0] != own:
            found.append((own, [[]]))
        run = found[-1][1]
        if any(last == each[0] for each in run[-1]):
            run.append([])
        run[-1].append((last, offset, size))
    return found


def runs(
    shard: str, fields: Fields = FIELDS, note: Note = no_note
) -> Iterator[tuple[str, list[list[Member]]]]:
    """Yield each key with the samples of it that lie one behind the other, as their members.

    The rule is webdataset's: the key is the path up to the first dot of the basename, the members
    of a sample are adjacent, hidden and dotless files are passed over. A sample ends where an
    extension repeats, too, as OpenCLIP has it: three pairs of one key are three samples.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.
        note: called for each member that is in no sample.

    Raises:
        ValueError: see `clipfast.data.tarwalk.walk`.
    """
    run: list[list[Member]] = []
    key: str | None = None
    extensions: set[str] = set()
    for name, offset, size in walk(shard, note):
        parts = fields.split(name)
        if parts is None or "PaxHeader" in name:
            why = _passed_over(name)
            if parts is None or why:
                note(name, f"left out: {why}")
                continue
        if parts[0] != key:
            if key is not None:
                yield key, run
            key, run, extensions = parts[0], [[]], set()
        elif parts[1] in extensions:
            run.append([])
            extensions = set()
        extensions.add(parts[1])
        run[-1].append((parts[1], offset, size))
    if key is not None:
        yield key, run


def scan(shard: str, fields: Fields = FIELDS) -> Iterator[Sample]:
    """The samples that `contents` finds, complete or not, in the order of the tar."""
    yield from contents(shard, fields).samples


def _passed_over(name: str) -> str:
    """Why a member counts as no part of a sample; '' where it may be one."""
    folder, _, base = name.rpartition("/")
    if base.startswith("._"):
        return "metadata of macOS (AppleDouble)"
    if base.startswith("."):
        return "a hidden file"
    if any(part.startswith("PaxHeader") for part in folder.split("/")):
        return "a pax header that a program stored as a file"
    return "" if "." in base else "no extension"


def _add(found: Contents, key: str, run: list[list[Member]], fields: Fields, caption: str) -> None:
    broken = False
    for members in run:
        sample = fields.sample(key, members, caption)
        if sample.entry and broken:
            sample = Sample(key, None, _REPEATED)
        elif sample.entry and max(size for _, _, size in members) > _LARGEST:
            sample = Sample(key, None, f"a member is larger than {_LARGEST:,} bytes")
        elif sample.entry and len(members) > 2:
            found.left_out += _unused(sample.entry, members, fields)
        broken = sample.entry is None
        found.samples.append(sample)


def _unused(entry: Entry, members: list[Member], fields: Fields) -> Iterator[tuple[str, str]]:
    for extension, _, _ in members:
        if extension in fields.images and extension != entry.extension:
            why = f"left out: the image of this sample is its .{entry.extension}"
            yield f"{entry.key}.{extension}", why


def _name_parts(found: Contents) -> None:
    """Say of samples without image or caption where the other half lies apart in the tar."""
    incomplete: dict[str, list[int]] = {}
    for number, sample in enumerate(found.samples):
        if sample.entry is None:
            incomplete.setdefault(sample.key, []).append(number)
    for numbers in incomplete.values():
        starts = {found.samples[number].problem[:10] for number in numbers}
        if {"no image: ", "no caption"} <= starts:
            for number in numbers:
                sample = found.samples[number]
                found.samples[number] = replace(sample, problem=sample.problem + _APART)
