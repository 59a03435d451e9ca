"""nginx on loopback, in a process of its own, with a port per latency.

It answers ranges of files over HTTP, and as S3 does, whose clients ask for BUCKET/KEY and sign what
they ask: signatures are made, and not looked at. A request that is to take longer waits in nginx's
own loop, so that the client's cores have nothing to do with it. nginx's log has a line per request:
requests and bytes are counted there, whoever asked.

A further port of each protocol breaks connections: each time that it has sent so many bytes in all,
the answer that is on its way ends in the middle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parts.common.contest import NotMeasured

BUCKET = "shards"
PROTOCOLS = ("http", "s3")
# Nobody looks at them.
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
# As Debian installs them.
_MODULES = [
    Path("/usr/lib/nginx/modules") / f"{name}_module.so" for name in ("ndk_http", "ngx_http_lua")
]
_PATIENCE = 30.0
# Latency of the port that breaks connections, and after how many bytes it does.
BREAKS = -1
BYTES_PER_BREAK = 10_000_000


@dataclass(frozen=True)
class Traffic:
    """What nginx has answered.

    Attributes:
        requests: Their number.
        bytes: Of bodies.
    """

    requests: int
    bytes: int


@dataclass(frozen=True)
class Servers:
    """What runs.

    Attributes:
        ports: Of nginx, by protocol ("http", "s3") and milliseconds, or BREAKS.
        log: Of nginx.
        pid: Of nginx.
    """

    ports: dict[tuple[str, int], int]
    log: Path
    pid: int

    def address(self, protocol: str, latency_ms: int) -> str:
        """Where a server answers over HTTP.

        Args:
            protocol: "http" or "s3".
            latency_ms: By which each of its answers is later; BREAKS: some are cut.
        """
        return f"http://127.0.0.1:{self.ports[protocol, latency_ms]}"

    def breaks(self) -> int:
        """Answers that were cut, since the start."""
        with urllib.request.urlopen(f"{self.address('http', BREAKS)}/breaks") as answer:
            return int(answer.read())

    def cpu_seconds(self) -> float:
        """Of nginx, since the start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def traffic(self) -> Traffic:
        """Everything since the start."""
        time.sleep(0.3)  # the log is written each 100 ms
        lines = self.log.read_text().splitlines()
        return Traffic(len(lines), sum(int(line.split()[1]) for line in lines))


_BREAK = f"""body_filter_by_lua_block {{
  local broken, size, every = ngx.shared.broken, #ngx.arg[1], {BYTES_PER_BREAK}
  local sent = broken:incr("bytes", size, 0)
  if size > 0 and math.floor(sent / every) > math.floor((sent - size) / every) then
    broken:incr("breaks", 1, 0)
    return ngx.ERROR
  end
}}"""
_COUNT = 'content_by_lua_block { ngx.print(ngx.shared.broken:get("breaks") or 0) }'


def require_nginx() -> None:
    """See that it is here.

    Raises:
        NotMeasured: It is not; says how it comes.
    """
    if shutil.which("nginx") is None or not all(path.exists() for path in _MODULES):
        raise NotMeasured("no nginx with Lua: apt-get install nginx-light libnginx-mod-http-lua")


@contextlib.contextmanager
def serve(
    folder: Path, work: Path, latencies_ms: Sequence[int], cores: set[int]
) -> Iterator[Servers]:
    """A server of a folder until the block ends.

    Args:
        folder: What it hands out: ``http://HOST/NAME``, and ``s3://shards/NAME``.
        work: An empty folder for what it writes.
        latencies_ms: A port for each, of each protocol.
        cores: That it may use.
    """
    require_nginx()
    kinds = [(protocol, ms) for protocol in PROTOCOLS for ms in (*latencies_ms, BREAKS)]
    ports = dict(zip(kinds, _free_ports(len(kinds)), strict=True))
    (work / "listing.xml").write_text(_listing(folder))
    conf = work / "nginx.conf"
    conf.write_text(_configuration(folder, work, ports))
    command = ["nginx", "-c", str(conf), "-p", str(work), "-e", str(work / "error.log")]
    with _running(command, cores) as nginx:
        for port in ports.values():
            _wait_for(port)
        yield Servers(ports, work / "access.log", nginx.pid)


def _configuration(folder: Path, work: Path, ports: dict[tuple[str, int], int]) -> str:
    modules = "\n".join(f"load_module {path};" for path in _MODULES)
    temporary = "\n".join(
        f"{kind}_temp_path {work / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = []
    for (protocol, latency_ms), port in ports.items():
        wait = f"access_by_lua_block {{ ngx.sleep({latency_ms / 1e3}) }}" if latency_ms > 0 else ""
        if latency_ms == BREAKS:
            wait = _BREAK
        path = f"/{BUCKET}/" if protocol == "s3" else "/"
        servers.append(
            f"server {{ listen 127.0.0.1:{port}; "
            f"location = /breaks {{ access_log off; {_COUNT} }} "
            f"location = /{BUCKET} {{ {wait} default_type application/xml; "
            f"alias {work}/listing.xml; }} "
            f"location {path} {{ {wait} alias {folder.resolve()}/; }} }}"
        )
    return f"""
{modules}
daemon off; master_process off; pid {work / "nginx.pid"};
events {{ worker_connections 8192; }}
http {{
lua_shared_dict broken 1m;
log_format count '$status $body_bytes_sent $request';
access_log {work / "access.log"} count buffer=64k flush=100ms;
{temporary}
sendfile on; tcp_nodelay on; keepalive_requests 10000000; keepalive_timeout 600;
{chr(10).join(servers)}
}}
"""


def _listing(folder: Path) -> str:
    """What S3 says of the objects of a bucket."""
    objects = "".join(
        f"<Contents><Key>{path.name}</Key><Size>{path.stat().st_size}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for path in sorted(folder.iterdir())
    )
    return (
        f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{objects}"
        "</ListBucketResult>"
    )


@contextlib.contextmanager
def _running(command: Sequence[str], cores: set[int]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, cores)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _wait_for(port: int) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise NotMeasured(f"no server answers on port {port}") from None
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
