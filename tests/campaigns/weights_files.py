"""All files of the campaign on weights: what each is, and how it is made."""

from tests.campaigns.weights_damaged import DAMAGED
from tests.campaigns.weights_foreign import FOREIGN
from tests.campaigns.weights_hostile import HOSTILE
from tests.campaigns.weights_kinds import File
from tests.campaigns.weights_wrapped import WRAPPED

FILES: list[File] = [*WRAPPED, *FOREIGN, *DAMAGED, *HOSTILE]

__all__ = ["FILES", "File"]
