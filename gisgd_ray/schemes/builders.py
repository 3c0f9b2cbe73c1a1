"""What builds a scheme from its configuration: the function that its record names."""

from torch import nn

from gisgd_ray.config.catalogue import SCHEMES
from gisgd_ray.config.scheme import SchemeConfig
from gisgd_ray.schemes.base import Scheme, Setting


def build_scheme(config: SchemeConfig, model: nn.Module, setting: Setting) -> Scheme:
    """The scheme a config names, in its initial state.

    Raises:
        UserError: the scheme does not know a layer of the model, or the function that builds it is
            missing.
    """
    scheme: Scheme = SCHEMES[config.name].function()(config, model, setting)
    return scheme
