"""Image-text retrieval: how high the best right partner stands among all candidates."""

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)

# Features become multiples of 2**-26. Products of two such rows are then integers below 2**53,
# which float64 adds without rounding: the sum is the same in any order.
_GRID = 2.0**26
# Compared at a time.
_PAIRS = 8192


@torch.no_grad()
def right_ranks(
    queries: Tensor, candidates: Tensor, right: Tensor, chunk: int = 512, block: int = 65_536
) -> Tensor:
    """Wrong candidates before each query's best right one, sorted by cosine similarity.

        b_i    = the first of the right candidates whose S_ij is largest
        rank_i = #{wrong j : S_ij > S_ib} + #{wrong j < b : S_ij = S_ib}

    Candidates of equal similarity keep their order, so a collapsed model scores chance, not 1.
    Similarities are exact on a grid of 2**-26. They depend neither on the number of threads nor on
    ``chunk`` and ``block``, and equal features have equal similarities. A row that is zero or not
    finite has no direction: its similarity is 0 to all.

    Args:
        queries: ``[Q, D]``.
        candidates: ``[N, D]``, same device.
        right: ``[K, 2]`` int64, pairs of a query and a right candidate; each query has one at
            least.
        chunk: queries compared at a time.
        block: candidates compared at a time. Beside the features the memory used is
            ``chunk * block + (chunk + block) * D`` doubles.

    Returns:
        ``[Q]`` int64, 0 for the best.
    """
    right = right.to(queries.device)
    right = right[right[:, 0].argsort(stable=True)]
    top, place = _best_right(queries, candidates, right)
    starts = torch.arange(0, len(queries) + chunk, chunk, device=queries.device)
    bounds = torch.searchsorted(right[:, 0].contiguous(), starts).tolist()
    ahead = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for first in range(0, len(candidates), block):
        columns = _on_grid(candidates[first : first + block])
        order = torch.arange(first, first + len(columns), device=queries.device)
        for number, start in enumerate(range(0, len(queries), chunk)):
            rows = slice(start, start + chunk)
            similarity = _on_grid(queries[rows]) @ columns.T
            query, answer = right[bounds[number] : bounds[number + 1]].T
            here = (answer >= first) & (answer < first + len(columns))
            similarity[query[here] - start, answer[here] - first] = -torch.inf
            mine, before = top[rows, None], order < place[rows, None]
            ahead[rows] += ((similarity > mine) | ((similarity == mine) & before)).sum(1)
    return ahead


@torch.no_grad()
def cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    """The similarities of ``right_ranks``: exact on their grid, so that equal features tie.

    Args:
        queries: ``[Q, D]``.
        candidates: ``[N, D]``, same device.

    Returns:
        ``[Q, N]`` float64, within 2**-26 of the cosines.
    """
    return (_on_grid(queries) @ _on_grid(candidates).T) / _GRID**2


def pair_ranks(queries: Tensor, candidates: Tensor, first: int = 0, chunk: int = 512) -> Tensor:
    """``right_ranks`` where each query has one right candidate, its own.

    Args:
        queries: ``[Q, D]``; query i belongs to candidate ``first + i``.
        candidates: ``[N, D]``, same device.
        first: offset of the queries among the candidates.
        chunk: see ``right_ranks``.

    Returns:
        ``[Q]`` int64, 0 for the best.
    """
    query = torch.arange(len(queries))
    return right_ranks(queries, candidates, torch.stack([query, first + query], 1), chunk)


@torch.no_grad()
def best(query: Tensor, candidates: Tensor, count: int) -> list[int]:
    """The candidates that are most similar to a query, in the order of ``right_ranks``.

    Args:
        query: ``[D]``.
        candidates: ``[N, D]``, same device.
        count: how many.

    Returns:
        Their places, the most similar first.
    """
    similarity = _on_grid(candidates) @ _on_grid(query[None])[0]
    return similarity.argsort(descending=True, stable=True)[:count].tolist()


def recalls(ranks: Tensor) -> dict[str, float]:
    """Share of queries with a right candidate among the first 1, 5 and 10.

    Args:
        ranks: ``[N]``, as from ``right_ranks``, of all queries.

    Returns:
        ``{"R@1": ..., "R@5": ..., "R@10": ...}``, each in [0, 1].
    """
    return {f"R@{k}": (ranks < k).float().mean().item() for k in RECALL_AT}


def chance(right: Tensor, candidates: int) -> dict[str, float]:
    """Recalls that are expected of candidates in random order.

        R@k = mean over queries of 1 - C(N - r, k) / C(N, k),  r right ones among N candidates

    Args:
        right: ``[K, 2]``, see ``right_ranks``.
        candidates: N.

    Returns:
        As ``recalls``.
    """
    counts = right[:, 0].unique(return_counts=True)[1].double()
    expected = {}
    for k in RECALL_AT:
        missed = torch.ones_like(counts)
        for drawn in range(min(k, candidates)):
            missed *= (candidates - drawn - counts).clamp(min=0) / (candidates - drawn)
        expected[f"R@{k}"] = 1.0 - missed.mean().item()
    return expected


def _on_grid(features: Tensor) -> Tensor:
    """Rows of length 1 as whole multiples of the grid's step: ``[N, D]`` float64."""
    rows = features.double().contiguous()
    length = rows.square().sum(1, keepdim=True).sqrt()
    # In float32, so that a length has one value however its squares were added.
    return (rows / length.float()).mul(_GRID).round().nan_to_num(0.0, 0.0, 0.0)


def _best_right(queries: Tensor, candidates: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The largest similarity to a right candidate, ``[Q]``, and the first place that has it."""
    found = [torch.empty(0, dtype=torch.float64, device=queries.device)]
    for pairs in right.split(_PAIRS):
        query, answer = pairs.T
        found.append((_on_grid(queries[query]) * _on_grid(candidates[answer])).sum(1))
    similarity, (query, answer) = torch.cat(found), right.T
    top = similarity.new_full((len(queries),), -torch.inf)
    top = top.scatter_reduce(0, query, similarity, "amax")
    is_top = similarity == top[query]
    place = torch.full((len(queries),), len(candidates), device=queries.device)
    return top, place.scatter_reduce(0, query[is_top], answer[is_top], "amin")
