"""Read configs: the only package that sees a ConfigDict."""
