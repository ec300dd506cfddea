"""Networks and losses, as Keras objects that are chosen by name; knows nothing of image files.

A module that registers a network or a loss is imported here, so that its names are known wherever one is chosen.
"""

from mitoflow.models import losses as losses
from mitoflow.models import unet as unet
