"""``params.yaml`` and its presets as validated models: the one place where a parameter is defined."""
