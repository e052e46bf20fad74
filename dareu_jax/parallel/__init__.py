"""Device meshes, shardings and multi-host jobs."""
