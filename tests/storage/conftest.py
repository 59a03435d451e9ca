"""A store and a web server on this machine, each behind a proxy that can fail."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfast import storage
from clipfast.data import index, shards
from clipfast.storage import StoreOptions, storage_of
from tests.engine.conftest import process_group  # noqa: F401 - a fixture for tests of this folder
from tests.needs import need
from tests.storage import nginxfolder
from tests.storage.httpfolder import serve
from tests.storage.motoserver import served
from tests.storage.proxy import Proxy

SIZES = (7, 5, 9)
SECRETS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}


def write_shard(path: Path, number: int, count: int, side: tuple[int, int] = (40, 36)) -> None:
    """A tar of random pictures; captions say shard and row."""
    draw = np.random.default_rng(number)
    with tarfile.open(path, "w") as tar:
        for row in range(count):
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (*side, 3), np.uint8)).save(buffer, "PNG")
            for name, data in (("png", buffer.getvalue()), ("txt", f"{number} {row}".encode())):
                member = tarfile.TarInfo(f"{row:04d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with their indexes, and one without."""
    where = tmp_path_factory.mktemp("shards")
    for number, count in enumerate(SIZES):
        write_shard(where / f"0000{number}.tar", number, count)
    made = shards.expand(str(where / "*.tar"))
    assert index.index_shards(made, workers=1, dali=False, progress=False).good == sum(SIZES)
    write_shard(where / "bare.tar", 9, 3)
    (where / "pictures").mkdir()
    for name in ("apple", "leaf"):
        Image.new("RGB", (40, 40), "red").save(where / "pictures" / f"{name}.png")
        (where / "pictures" / f"{name}.txt").write_text(name)
    return where


@pytest.fixture(scope="session")
def moto(folder: Path) -> Iterator[Proxy]:
    """moto's S3 server behind a proxy. The bucket "shards" holds the folder under "set"."""
    need("obstore", "moto", "flask", "flask_cors")
    with served(folder, SECRETS) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def web_proxy(folder: Path) -> Iterator[Proxy]:
    """A web server of the folder behind a proxy."""
    need("obstore")
    server = serve(folder)
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def nginx_proxy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx with the folder, behind a proxy."""
    need("obstore", "nginx")
    with nginxfolder.serve(folder, tmp_path_factory.mktemp("nginx")) as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


def _rest(proxy: Proxy) -> None:
    proxy.faults.clear()
    proxy.met.clear()
    proxy.spoils = "GET"
    proxy.latency, proxy.away, proxy.most_at_once, proxy.sent = 0.0, False, 0, 0


@pytest.fixture
def s3(moto: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The store as s3://shards."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    _rest(moto)
    storage.configure(StoreOptions(endpoint=f"http://127.0.0.1:{moto.port}", patience=20))
    storage_of("s3://shards")._patience = quick(20)  # type: ignore[attr-defined]
    yield moto
    _rest(moto)
    storage.configure(StoreOptions())


@pytest.fixture
def web(web_proxy: Proxy) -> Iterator[Proxy]:
    """The web server; its address is `address(web)`."""
    yield from _reached(web_proxy)


@pytest.fixture
def nginx(nginx_proxy: Proxy) -> Iterator[Proxy]:
    """nginx; its address is `address(nginx)`."""
    yield from _reached(nginx_proxy)


@pytest.fixture(params=["web", "nginx"])
def any_web(request: pytest.FixtureRequest) -> Proxy:
    """The web server, and nginx in its place."""
    proxy: Proxy = request.getfixturevalue(request.param)
    return proxy


def _reached(proxy: Proxy) -> Iterator[Proxy]:
    _rest(proxy)
    storage.configure(StoreOptions(patience=20))
    storage_of("http://x")._patience = quick(20)  # type: ignore[attr-defined]
    yield proxy
    _rest(proxy)
    storage.configure(StoreOptions())


def quick(seconds: float) -> storage.patience.Patience:
    """Patience whose pauses are a hundredth of what they are."""

    def sleep(pause: float) -> bool:
        time.sleep(pause / 100)
        return False

    return storage.patience.Patience(seconds, sleep=sleep)


def address(proxy: Proxy) -> str:
    """The web server's address."""
    return f"http://127.0.0.1:{proxy.port}"
