"""Reports: plain dicts in; tables, plots and files out. Knows no model and no jax."""
