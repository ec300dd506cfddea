"""The Optuna study of the training's hyper-parameters: the only package that imports Optuna."""
