"""The registry of backbones: a new family is one file and one line here."""

from charm_jax.backbones import efficientnet_v2
from charm_jax.backbones.backbone import Backbone

BACKBONES: dict[str, Backbone] = {
    **efficientnet_v2.MEMBERS,
}
