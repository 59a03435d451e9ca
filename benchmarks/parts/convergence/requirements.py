"""What OpenCLIP's train script imports, and which of it is there.

It reads shards with a webdataset of before 0.2.87: newer ones mark the end of a shard by a sample
without a name, at which it fails.
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

NEWEST = (0, 2, 86)
COMMAND = (
    "pip install --no-deps --target PACKAGES "
    "webdataset==0.2.86 braceexpand pandas python-dateutil six"
)


def require_packages(packages: Path | None) -> None:
    """See that the script will start.

    Args:
        packages: A folder that comes before what is installed; None is that alone.

    Raises:
        ImportError: a package is missing or too new; says how to get it.
    """
    wrong = [
        f"{name} is {found}"
        for name, found in (("webdataset", _webdataset(packages)), ("pandas", _pandas(packages)))
        if found
    ]
    if wrong:
        raise ImportError(
            f"OpenCLIP's train script: {' and '.join(wrong)}. Give it packages of its own: "
            f"{COMMAND}, then --packages PACKAGES"
        )


def _webdataset(packages: Path | None) -> str:
    version = _version("webdataset", packages)
    if version is None:
        return "missing"
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return f"{version}, newer than {'.'.join(map(str, NEWEST))}" if parts > NEWEST else ""


def _pandas(packages: Path | None) -> str:
    return "" if _version("pandas", packages) else "missing"


def _version(name: str, packages: Path | None) -> str | None:
    own = [] if packages is None else [*distributions(name=name, path=[str(packages)])]
    for found in (*own, *distributions(name=name)):
        return str(found.version)
    return None
