"""One optimizer step of many tensors."""
