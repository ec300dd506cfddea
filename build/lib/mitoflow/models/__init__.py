"""Networks and losses, as Keras objects; knows nothing of files of images or of parameters."""
