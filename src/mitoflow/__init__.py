"""mitoflow: from electron-microscopy stacks with mitochondria masks to a registered, promoted U-Net."""

import logging
import os

__version__ = "0.2.0"

# TensorFlow reports every processor feature and missing GPU library before it says anything useful.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# tifffile reports damage in log lines; here it becomes one InputError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
