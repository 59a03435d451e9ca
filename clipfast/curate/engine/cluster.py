"""Tasks on a Ray cluster, behind the interface of the standard library's executors."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from clipfast.storage import Storage, register_all, registered


def open_ray(address: str | None, workers: int | None) -> tuple[RayExecutor, int]:
    """Join a cluster, or start one of this machine.

    Args:
        address: of a cluster; None: it is started here, and ends with the executor.
        workers: tasks at a time; None: as many as the cluster has cores.

    Returns:
        The executor, and how many tasks it does at a time.

    Raises:
        ValueError: Ray is not installed, or fewer than one worker is asked for.
        OSError: there is no cluster at the address.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; leave it out for all cores")
    # Read as Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError(
            "--engine ray needs Ray, which is not installed: pip install ray, or leave --engine "
            "out for processes of this machine"
        ) from None
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address is None:
        options |= {
            "num_cpus": workers or len(os.sched_getaffinity(0)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(**options)
        except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.RayError) as error:
            raise OSError(_said(address, str(error))) from None
    cores = int(ray.cluster_resources().get("CPU", 1))
    return RayExecutor(ray, ends=began), min(workers or cores, cores)


def _said(address: str | None, text: str) -> str:
    """What a person can do where a cluster cannot be joined."""
    first = text.partition("\n")[0]
    if "auth" not in text.lower() or address is None:
        return f"no Ray cluster at {address or 'this machine'}: {first}; see that it runs"
    return (
        f"the Ray cluster at {address} asks for a token: {first}. 'ray start --head' does so where "
        "the machine has one. Set RAY_AUTH_MODE=token here and for each worker, and the same token "
        "everywhere: in ~/.ray/auth_token, or as RAY_AUTH_TOKEN ('ray get-auth-token' on the head "
        "prints it). RAY_AUTH_MODE=disabled for all of them does without"
    )


class RayExecutor(Executor):
    """Tasks of Ray. A task gets a copy of each registered storage, as workers of a pool do.

    Args:
        ray: the module, which has joined a cluster.
        ends: whether ``shutdown`` leaves the cluster.
    """

    def __init__(self, ray: Any, ends: bool) -> None:
        self._ray, self._ends = ray, ends
        self._task = ray.remote(_call)
        self._pending: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``concurrent.futures.Executor``."""
        reference = self._task.remote(registered(), fn, args, kwargs)
        self._pending.append(reference)
        future: Future[Any] = Future()
        inner = reference.future()
        inner.add_done_callback(lambda done: _settle(done, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``concurrent.futures.Executor``."""
        if cancel_futures:
            for reference in self._pending:
                self._ray.cancel(reference)
        elif wait and self._pending:
            self._ray.wait(self._pending, num_returns=len(self._pending))
        self._pending.clear()
        if self._ends:
            self._ray.shutdown()


def _settle(done: Future[Any], future: Future[Any]) -> None:
    """Hand on a result, and an error as the task raised it: Ray wraps it in one of its own."""
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(getattr(error, "cause", None) or error)


def _call(
    storages: dict[str, Storage], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    register_all(storages)
    return fn(*args, **kwargs)
