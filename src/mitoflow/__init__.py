"""mitoflow: from electron-microscopy stacks with mitochondria masks to a registered, promoted U-Net."""

__version__ = "0.2.0"
