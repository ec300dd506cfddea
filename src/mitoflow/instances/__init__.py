"""From a mask to its mitochondria: reading, components, the separation of those that touch, their morphometry."""
