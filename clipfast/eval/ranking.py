"""Image-text retrieval: how high the right partner stands among all candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

RECALL_AT = (1, 5, 10)


@torch.no_grad()
def pair_ranks(queries: Tensor, candidates: Tensor, first: int = 0, chunk: int = 1024) -> Tensor:
    """Place of each query's own candidate when candidates are sorted by cosine similarity.

        rank_i = #{j : S_ij > S_ii} + #{j < i : S_ij = S_ii}

    Candidates of equal similarity keep their order, so a collapsed model scores chance, not 1.

    Args:
        queries: ``[Q, D]``; query i belongs to candidate ``first + i``.
        candidates: ``[N, D]``, same device.
        first: offset of the queries among the candidates.
        chunk: queries compared at a time: the memory used is ``chunk * N`` floats.

    Returns:
        ``[Q]`` int64, 0 for the best.
    """
    queries = F.normalize(queries.float(), dim=-1)
    candidates = F.normalize(candidates.float(), dim=-1)
    place = torch.arange(len(candidates), device=candidates.device)
    ranks = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ candidates.T
        own = first + torch.arange(start, start + len(similarity), device=place.device)
        own_similarity = similarity.gather(1, own[:, None])
        better = similarity > own_similarity
        earlier = (similarity == own_similarity) & (place < own[:, None])
        ranks.append((better | earlier).sum(1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64)


def recalls(ranks: Tensor) -> dict[str, float]:
    """Share of queries whose partner is among the first 1, 5 and 10.

    Args:
        ranks: ``[N]``, as from ``pair_ranks``, of all queries.

    Returns:
        ``{"R@1": ..., "R@5": ..., "R@10": ...}``, each in [0, 1].
    """
    return {f"R@{k}": (ranks < k).float().mean().item() for k in RECALL_AT}
