"""The report room: plain dicts in, tables, figures and files out; knows no model and no jax."""
