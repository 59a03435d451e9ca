"""What a model is evaluated on: labelled images, and images with captions.

    pets = open_set("pets/", split="test")                 # one subfolder per class
    flickr = open_captions("flickr.csv", root="images/")   # columns: image and caption

Both hold encoded files, and decode nothing.
"""

from clipfast.eval.sets.kinds import CaptionedSet, LabelledSet
from clipfast.eval.sets.opening import open_captions, open_set

__all__ = ["CaptionedSet", "LabelledSet", "open_captions", "open_set"]
