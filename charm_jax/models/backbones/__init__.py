"""Register the backbones: a new family is one file and one line here."""

from charm_jax.models.backbones import densenet, efficientnet_lite, efficientnet_v2, resnet, vgg_lka
from charm_jax.models.backbones.backbone import Backbone

BACKBONES: dict[str, Backbone] = {
    **efficientnet_v2.MEMBERS,
    **efficientnet_lite.MEMBERS,
    **resnet.MEMBERS,
    **densenet.MEMBERS,
    **vgg_lka.MEMBERS,
}
