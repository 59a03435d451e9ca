"""clipfast's parts inside other people's models.

patch = clipfast.patch_open_clip(model)
print(patch)
"""

from clipfast.integrations.open_clip import patch_open_clip
from clipfast.integrations.patching import MethodReplacement, Patch, Patched, Replacement

__all__ = ["MethodReplacement", "Patch", "Patched", "Replacement", "patch_open_clip"]
