"""``ClipLoss``: the loss with the constructor and call of ``open_clip.loss.ClipLoss``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfast.loss.contrastive import clip_loss
from clipfast.loss.distributed import find_shares
from clipfast.loss.reference import gather_rows


class ClipLoss(nn.Module):
    """Drop-in for ``open_clip.loss.ClipLoss``: change the import, keep the training script.

    Equal to ``clip_loss(image_features, text_features, logit_scale, normalize=False)``, since an
    OpenCLIP model returns normalised features. Logits are never rounded to half precision, under
    autocast too, and ranks may hold different numbers of pairs. OpenCLIP's CoCaLoss and
    DistillClipLoss derive from its own class, so import this one where the loss is made (in
    open_clip_train 3.3, ``open_clip.factory.ClipLoss``; in 4.2, ``open_clip.loss.ClipLoss``);
    ``clipfast.patch_open_clip`` swaps its forward and minds the classes that derive from it.

    Where it differs from OpenCLIP: whatever ``local_loss`` and ``gather_with_grad`` say, the
    gradients after the mean over ranks that DistributedDataParallel applies are those of the global
    batch's loss. OpenCLIP's default (both False) gives encoder gradients 1/world_size of these, and
    ``local_loss=True`` without ``gather_with_grad`` drops the gradient through the gathered
    features. A learning rate tuned under either flag may want tuning again; one tuned under
    ``local_loss=True, gather_with_grad=True`` does not.

    Args:
        local_loss: accepted for compatibility; the result does not depend on it.
        gather_with_grad: accepted for compatibility; the result does not depend on it.
        cache_labels: accepted for compatibility; targets cost nothing here.
        rank: this process's rank; checked against the process group.
        world_size: number of processes that share the batch. 1 keeps the loss on this process.
        use_horovod: refused, see Raises.
        group: the ranks that share the batch; None is the default group.
        equal_batches: promise that every rank always brings the same number of pairs (a loader
            with ``drop_last=True``). Without it the ranks ask each other at each call, for which
            the host waits for the GPU where the group has no CPU backend, as under "nccl" alone.
        impl: as for `clipfast.clip_loss`.
        keep_logits: as there.
        workspace_bytes: as there.

    Raises:
        NotImplementedError: ``use_horovod=True``; the gathers are ``torch.distributed``'s.
        RuntimeError: at a call, when ``rank`` or ``world_size`` and the process group disagree.

    Source: Radford et al. 2021, figure 3; the interface is that of open_clip_torch 3.3 and 4.2.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        group: dist.ProcessGroup | None = None,
        equal_batches: bool = False,
        impl: str = "auto",
        keep_logits: bool | str = "auto",
        workspace_bytes: int | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise NotImplementedError(
                "ClipLoss gathers features with torch.distributed, which Horovod does not set up; "
                "launch with torchrun or deepspeed and pass use_horovod=False"
            )
        self.use_horovod = False
        # OpenCLIP keeps targets here; ours are made anew, which costs nothing.
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.group = group
        self.equal_batches = equal_batches
        self.impl = impl
        self.keep_logits = keep_logits
        self.workspace_bytes = workspace_bytes

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The global batch's loss of normalised features.

        Args:
            image_features: ``[B, D]``, normalised.
            text_features: ``[B, D]``, normalised.
            logit_scale: one element, exp of the parameter.
            logit_bias: a constant added to every logit; both softmaxes drop it, so it changes
                nothing and receives a zero gradient.
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            The loss, or the dictionary.
        """
        self._check_ranks()
        loss = clip_loss(
            image_features,
            text_features,
            logit_scale,
            group="local" if self.world_size == 1 else self.group,
            normalize=False,
            batch_sizes=self._batch_sizes(image_features),
            impl=self.impl,
            keep_logits=self.keep_logits,
            workspace_bytes=self.workspace_bytes,
        )
        if logit_bias is not None:
            loss = loss + 0.0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits themselves, for a loss of your own; `forward` never makes them.

            logits_per_image = logit_scale * image_features @ all_text_features.T + logit_bias

        Args:
            image_features, text_features, logit_scale, logit_bias: as for `forward`.

        Returns:
            Logits per image and per text: ``[G, G]``, or ``[B, G]`` under ``local_loss``, as
            OpenCLIP's. Gathered features carry their gradient to the ranks they come from.
        """
        all_images, all_texts = self._gather(image_features), self._gather(text_features)
        if not self.local_loss:
            image_features, text_features = all_images, all_texts
        per_image = logit_scale * image_features @ all_texts.T
        per_text = logit_scale * text_features @ all_images.T
        if logit_bias is not None:
            per_image, per_text = per_image + logit_bias, per_text + logit_bias
        return per_image, per_text

    def get_ground_truth(self, device: torch.device | str, num_logits: int) -> Tensor:
        """The column of each row's pair in what `get_logits` returns.

        Args:
            device: where the loss is computed.
            num_logits: rows of the logits; the same on every rank under ``local_loss``.

        Returns:
            ``[num_logits]`` int64.
        """
        first = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        return torch.arange(first, first + num_logits, device=device)

    def _gather(self, features: Tensor) -> Tensor:
        self._check_ranks()
        if self.world_size == 1:
            return features
        shares = find_shares(features, self.group, self._batch_sizes(features))
        return gather_rows(features, shares)

    def _batch_sizes(self, features: Tensor) -> list[int] | None:
        return [features.shape[0]] * self.world_size if self.equal_batches else None

    def _check_ranks(self) -> None:
        if self.world_size == 1:
            return
        initialised = dist.is_available() and dist.is_initialized()
        actual = dist.get_world_size(self.group) if initialised else 1
        rank = dist.get_rank(self.group) if initialised else 0
        if (actual, rank) != (self.world_size, self.rank):
            raise RuntimeError(
                f"ClipLoss was built with world_size={self.world_size}, rank={self.rank}, but this "
                f"is rank {rank} of {actual} in the process group; pass the group's own, after "
                "init_process_group"
            )
