"""The models that find near duplicates, by name: the paper's and a tiny one.

Importing this module makes them known to `create_model` and to `--model.name`.

Source: Radford et al. 2021, appendix C: a ResNet-50; InfoNCE at a fixed temperature of 0.07.
"""

from __future__ import annotations

from clipfast.models.architecture import Architecture
from clipfast.models.catalogue import register_model
from clipfast.models.near_resnet import NearResNetConfig

TEMPERATURE = 0.07


def _detector(name: str, width: int, vision: NearResNetConfig) -> Architecture:
    return register_model(
        Architecture(name, width, vision, text=None, activation="gelu", temperature=TEMPERATURE)
    )


NEAR_RN50 = _detector("near-RN50", 256, NearResNetConfig((3, 4, 6, 3)))
# 57 MFLOP forward per picture, for two cores.
NEAR_TINY = _detector(
    "near-tiny", 128, NearResNetConfig((2, 2, 2), width=24, image_size=64, stem_width=16)
)
