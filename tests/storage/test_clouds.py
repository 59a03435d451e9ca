"""Google's and Azure's protocols: what was asked of S3's, of the clients that have their own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from clipfast import storage
from clipfast.data import index, shards
from clipfast.storage import Cache, StoreOptions, objects, storage_of
from clipfast.storage.failures import ChangedError
from clipfast.storage.transfer import bring, send
from tests.campaigns.subject import free_port
from tests.needs import need
from tests.storage.conftest import SIZES
from tests.storage.program import running
from tests.storage.test_objects import assert_equal, take

pytestmark = pytest.mark.xdist_group("stores")

# Azurite's account, which everybody knows.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION = "2021-08-06"


@pytest.fixture
def google(moto, tmp_path, monkeypatch) -> Iterator[str]:
    """moto again: Google's XML requests are S3's, with a token for a signature."""
    address = f"http://127.0.0.1:{moto.port}"
    key = {"gcs_base_url": address, "disable_oauth": True}
    key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    moto.faults.clear()
    moto.signs = True
    storage.configure(StoreOptions(endpoint=address, patience=5))
    yield "gs://shards"
    moto.signs = False
    storage.configure(StoreOptions())


@pytest.fixture(scope="session")
def azurite(tmp_path_factory) -> Iterator[int]:
    """Azurite's port, with an empty container "shards"."""
    need("obstore", "azurite-blob")
    port = free_port()
    program = shutil.which("azurite-blob")
    where = str(tmp_path_factory.mktemp("azurite"))
    options = ["--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    command = [str(program), "--blobPort", str(port), *options]
    with running(command, port, stdout=subprocess.DEVNULL, cwd=where):
        _make_container(port, "shards")
        yield port


def _make_container(port: int, name: str) -> None:
    date = formatdate(usegmt=True)
    text = f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{_VERSION}\n"
    text += f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    signed = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{_ACCOUNT}/{name}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}",
        },
    )
    urllib.request.urlopen(request).close()


@pytest.fixture
def azure(azurite, monkeypatch) -> Iterator[str]:
    """Azurite as az://shards."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", _ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _KEY)
    storage.configure(StoreOptions(endpoint=f"http://127.0.0.1:{azurite}/{_ACCOUNT}", patience=20))
    yield "az://shards"
    storage.configure(StoreOptions())


@pytest.fixture(params=["google", "azure"])
def place(request, folder) -> str:
    """A folder with the shards in a store of each kind."""
    root: str = request.getfixturevalue(request.param) + "/clouds"
    for number in range(len(SIZES)):
        for kind in ("tar", "idx"):
            path = folder / f"0000{number}.{kind}"
            storage_of(root).write_atomic(f"{root}/{path.name}", path.read_bytes())
    return root


def test_a_cloud_trains_as_files_do(place, folder, tmp_path, monkeypatch):
    pattern = str(folder / "{00000..00002}.tar")
    local = take(pattern)
    assert [path[-9:] for path in shards.expand(f"{place}/*.tar")] == [
        f"0000{number}.tar" for number in range(len(SIZES))
    ]
    assert_equal(take(f"{place}/*.tar"), local)
    # An index that is made there, and read where a listing says the versions.
    storage_of(place).remove(f"{place}/00000.idx")
    assert index.index_shards([f"{place}/00000.tar"], workers=1, progress=False).good == SIZES[0]
    monkeypatch.setattr(objects, "_WORTH_A_LISTING", 2)
    assert_equal(take(f"{place}/*.tar"), local)
    cache = Cache(str(tmp_path / "cache"), 10**9)
    storage.configure(storage_of(place).options, cache)
    for _ in range(2):
        assert_equal(take(f"{place}/*.tar"), local)


def test_a_clouds_listing_and_its_answers_name_a_version_alike(place, monkeypatch):
    paths = [f"{place}/0000{number}.tar" for number in range(len(SIZES))]
    store = storage_of(place)
    alone = {path: store.stat(path) for path in paths}
    monkeypatch.setattr(objects, "_WORTH_A_LISTING", 2)
    for path, stat in store.stats(paths).items():
        assert stat.etag == alone[path].etag
        assert not stat.differs(alone[path])


def test_a_cloud_that_has_another_version_ends_the_run(place, folder):
    path, data = f"{place}/00002.tar", (folder / "00002.tar").read_bytes()
    with storage_of(place).open(path) as reader:
        assert reader.read_many([(0, 10), (9000, 50)]) == [data[:10], data[9000:9050]]
        storage_of(place).write_atomic(path, data[:-1] + b"x")
        with pytest.raises(ChangedError, match="ETag"):
            reader.read_at(0, 10)
        with pytest.raises(ChangedError, match="ETag"):
            reader.read_many([(at, 10) for at in range(0, 40_000, 10_000)])


def test_a_large_file_is_sent_to_a_cloud_and_brought_back(place, tmp_path):
    data = os.urandom(12 << 20)
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "large").write_bytes(data)
    send(tmp_path / "large", f"{place}/large", len(data), digest)
    bring(f"{place}/large", tmp_path / "back", len(data), digest)
    assert (tmp_path / "back").read_bytes() == data
    storage_of(place).remove(f"{place}/large")
    assert not storage_of(place).is_file(f"{place}/large")
