"""clipfast's parts inside other people's models.

patch = clipfast.patch_open_clip(model)
print(patch)
"""

from clipfast.integrations.open_clip import Patch, patch_open_clip

__all__ = ["Patch", "patch_open_clip"]
