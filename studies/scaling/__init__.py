"""How the job scales with the mesh: compiled for devices that need not exist here, or run."""
