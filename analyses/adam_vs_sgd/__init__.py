"""Adam against SGD with momentum, layer by layer."""
