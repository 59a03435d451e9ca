"""The contrastive loss in Triton; `launch` holds what operators call."""
