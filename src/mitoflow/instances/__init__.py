"""From a mask to its mitochondria: components, the separation of those that touch, their morphometry."""
