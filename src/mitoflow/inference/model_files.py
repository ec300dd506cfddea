"""The names of the files of a trained model, which lie in one folder."""

WEIGHTS = "unet.keras"
SETTINGS = "inference.yaml"
EVALUATION = "evaluation.json"
DOMAIN = "domain.yaml"  # what the training images look like
CALIBRATION = "calibration.yaml"  # how Dice follows from its agreement with itself, for models of many tissues
OPTIONAL = (DOMAIN, CALIBRATION)  # that not every model has
