"""Settings of napari and Qt, which read them when they are imported."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["NAPARI_CONFIG"] = ""  # no preferences of whoever runs the tests, and none are saved
