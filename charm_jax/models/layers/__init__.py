"""Define batch norm and convolutions with custom gradients."""
