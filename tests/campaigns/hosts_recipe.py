"""A run whose image tower takes as long as a gather of texts over a slow network."""

from dataclasses import replace

from clipfast.engine import Config, ModelOptions, ZeroConfig, main
from clipfast.models import Architecture, ResNetConfig, TextConfig, register_model
from tests.campaigns.recipe import config as cheapest

# A few hundred milliseconds, and few bytes of gradients.
register_model(
    Architecture(
        "RN-hosts", 224, ResNetConfig((2, 2, 2, 2), 24, 64), TextConfig(1, 16, head_width=16)
    )
)


def config() -> Config:
    """The cheapest run otherwise, with few collectives beside the gather."""
    model, zero = ModelOptions("RN-hosts"), ZeroConfig(stage=0)
    return replace(cheapest(), model=model, zero=zero, batch_size=256)


if __name__ == "__main__":
    main(config())
